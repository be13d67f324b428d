"""AMQP connections that endure: `link.AmqpLink`. The only user of aio-pika.

A delivery is acknowledged by hand and only on the channel that brought it; a publish
is persistent, confirmed and timed. Deliveries are consumed at the level of aiormq,
below aio-pika's message objects, which cost half of a worker's time for each message.
"""
