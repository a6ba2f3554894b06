"""Messages of containerd's CRI socket, generated: see generate.sh."""
