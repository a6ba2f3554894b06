"""What the command `zeropod` does: it asks the shims of the node by their sockets."""
