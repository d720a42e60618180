"""The `l2p` command: one file a verb. It parses, calls the library and prints; nothing imports it."""
