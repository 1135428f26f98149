// SPDX-License-Identifier: MIT
// What every first process of ours does, whether our runtime or a container's command comes after it: hold the command
// line against the measured one, greet the parent, write its lines and end the machine.
//
// A header, so that each of the two programs stays one file that is compiled in one step.

#ifndef FIRST_PROCESS_H
#define FIRST_PROCESS_H

#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <stdbool.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#ifndef COMMAND_LINE
#error "COMMAND_LINE is the measured kernel command line of this image"
#endif

#define HEARTBEAT_PORT 9000 // aws-nitro-enclaves-sdk-bootstrap init.c
#define HEARTBEAT 0xB7
#define HEARTBEAT_SECONDS 10
#define DRAIN_STEPS 500 // of DRAIN_STEP microseconds and what a tick adds: a second or two for a port that takes nothing
#define DRAIN_STEP 1000

static const unsigned int parent_cids[] = {3, 2}; // Nitro's parent, then vhost-device-vsock's host

static void say(const char *line)
{
	// A console that cannot be written is no reason to stop.
	if (write(STDERR_FILENO, line, strlen(line)) < 0)
		return;
}

// A serial port sends what was written to it by and by, and reboot(2) waits for nobody: the last line, which says why,
// would be lost. The wait has an end, since the host is the one who takes the bytes.
static void drain_console(void)
{
	int status = 0;

	for (int step = 0; step < DRAIN_STEPS; step++) {
		if (ioctl(STDERR_FILENO, TIOCSERGETLSR, &status) != 0 || (status & TIOCSER_TEMT) != 0)
			return; // no serial port, or an empty one
		usleep(DRAIN_STEP);
	}
}

static void power_off(void)
{
	drain_console();
	sync();
	reboot(RB_AUTOBOOT);
	for (;;)
		pause();
}

static void halt_saying(const char *line)
{
	say(line);
	power_off();
}

#define HALT(reason) halt_saying("init: halt: " reason "\n") // one write, of a constant

static void open_console(void)
{
	int fd = open("/dev/console", O_RDWR | O_NOCTTY);

	if (fd < 0)
		return;
	for (int target = 0; target <= 2; target++)
		if (fd != target)
			dup2(fd, target);
	if (fd > 2)
		close(fd);
}

// Whether the command line that this image was built with stands in `text` as whole words.
static bool holds_command_line(const char *text)
{
	size_t length = strlen(COMMAND_LINE);

	for (const char *at = text; (at = strstr(at, COMMAND_LINE)) != NULL; at++) {
		char after = at[length];
		bool starts = at == text || at[-1] == ' ';

		if (starts && (after == '\0' || after == ' ' || after == '\n'))
			return true;
	}
	return false;
}

static bool greet_parent(unsigned int cid)
{
	struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_port = HEARTBEAT_PORT, .svm_cid = cid};
	struct timeval limit = {.tv_sec = HEARTBEAT_SECONDS};
	unsigned char byte = HEARTBEAT;
	bool greeted = false;
	int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return false;
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &limit, sizeof(limit));
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0 && write(fd, &byte, 1) == 1)
		greeted = read(fd, &byte, 1) == 1 && byte == HEARTBEAT;
	close(fd);
	return greeted;
}

static void greet(void)
{
	for (size_t index = 0; index < sizeof(parent_cids) / sizeof(parent_cids[0]); index++)
		if (greet_parent(parent_cids[index]))
			return;
	HALT("the parent does not answer the heartbeat");
}

#endif
