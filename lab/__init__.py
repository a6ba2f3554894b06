"""A throw-away Kubernetes-like node on this machine: real containerd, runc, CRIU, CNI and images.

Everything lives below one ignored folder (``.lab``) and, while it runs, in a mount and a network
namespace of its own. ``python -m lab --help`` lists the commands.
"""
