"""containerd's task service: validates, delegates to a container, answers; and the events."""
