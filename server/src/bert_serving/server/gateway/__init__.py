"""Gateways: other protocols, each a process of its own and an ordinary client of the broker."""
