"""Ports, idle time and the native activator of a pod."""
