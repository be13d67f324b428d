"""A worker of the pool: takes spilled requests from RabbitMQ and answers them."""
