"""zeropod: a containerd shim that scales containers to zero."""
