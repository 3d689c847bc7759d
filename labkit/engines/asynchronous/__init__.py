"""Asynchronous: peers that meet at no barrier."""
