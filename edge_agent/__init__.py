"""The daemon on the edge: answers what it can, spills what it cannot, loses nothing.

Needs neither TensorFlow nor aio-pika. `edge_agent.app.Agent` embeds it in a program.
"""
