"""The wire: messages, codec, topology as data, and the MQTT and AMQP connections.

A leaf: imports no other package of the project. `broker.amqp` is the only part
that needs aio-pika, and nothing here imports it unless asked to.
"""
