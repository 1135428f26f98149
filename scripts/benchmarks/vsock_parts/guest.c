// SPDX-License-Identifier: MIT
// The guest of `scripts/bench vsock`: does what the host asks on a control connection, and nothing else.
//
// Each order is 16 bytes, little-endian: u32 direction (0 to the host, 1 from it), u32 bytes a write, u64 bytes in all.
// It opens a data connection, waits for one byte (the clock starts), moves the bytes, and ends with one byte back.

#define _GNU_SOURCE
#include <linux/vm_sockets.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <unistd.h>

#define HOST 2 // the CID that the other backend knows
#define CONTROL_PORT 9100
#define DATA_PORT 9101
#define READ_SIZE (256 * 1024) // bytes a read from the host
#define BUFFER_SIZE (1024 * 1024) // the largest write

struct order {
	uint32_t from_host;
	uint32_t size;
	uint64_t total;
};

static char buffer[BUFFER_SIZE];

static void end(void)
{
	reboot(RB_AUTOBOOT);
	for (;;)
		pause();
}

static int dial(unsigned int port)
{
	struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = HOST, .svm_port = port};

	for (int attempt = 0; attempt < 100; attempt++) {
		int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
		if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0)
			return fd;
		close(fd);
		usleep(100000);
	}
	end();
	return -1;
}

static void move(int fd, const struct order *order)
{
	uint64_t left = order->total;
	char byte;

	if (read(fd, &byte, 1) != 1)
		return;
	while (left) {
		size_t size = order->from_host ? READ_SIZE : order->size;
		ssize_t done;

		if (size > left)
			size = left;
		done = order->from_host ? read(fd, buffer, size) : write(fd, buffer, size);
		if (done <= 0)
			return;
		left -= done;
	}
	if (write(fd, &byte, 1) != 1)
		return;
	while (read(fd, &byte, 1) > 0) // until the host has closed
		;
}

int main(void)
{
	struct order order;
	int control = dial(CONTROL_PORT);

	memset(buffer, 'x', sizeof buffer);
	while (recv(control, &order, sizeof order, MSG_WAITALL) == sizeof order && order.size <= BUFFER_SIZE) {
		int fd = dial(DATA_PORT);
		move(fd, &order);
		close(fd);
	}
	end();
}
