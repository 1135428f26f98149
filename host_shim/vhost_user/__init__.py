# SPDX-License-Identifier: MIT
"""Virtual vsock for QEMU: a vhost-user backend that joins a guest's vsock ports to Unix sockets of the host.

It serves stock QEMU's `vhost-user-vsock-device`. The guest is hostile and QEMU's process little better: whatever they
write, the backend drops the guest's connections or the device, logs one constant line, and goes on.

errors      what ends a connection, a device or the process
protocol    vhost-user messages on a Unix socket, with their file descriptors
memory      the guest's memory, mapped and bounds-checked
virtqueue   split virtqueues
packet      the header of a vsock packet
connection  one stream, with the credit of both sides
inbox       the guest's receive queue: packets and bytes to the guest
device      the vsock device: connections, and the work on both queues
session     what one QEMU says about its device
loop        one edge-triggered epoll loop
sockets     Unix sockets as files
backend     all of it together, as `python -m host_shim.vhost_user`
"""
