"""An MQTT 3.1.1 connection that endures: `link.MqttLink`. The only user of aiomqtt.

Messages are handed over in the reader's own callback, before they are acknowledged,
and nothing here is queued: what is published is confirmed, refused or timed out.
"""
