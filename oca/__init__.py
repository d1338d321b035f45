"""The appliance: title format, content store, segment server, heartbeat, and the messages on the wire."""

__version__ = "0.1.0"
