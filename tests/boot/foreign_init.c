// SPDX-License-Identifier: MIT
// An /init of the layout that AWS's tools make, written from its description: greet the parent at CID 3, take /env and
// /cmd, make /rootfs the root, run the command, restart the machine when it ends. Called by any other name it is that
// command: it echoes on a vsock port what it is sent, after a line that shows its arguments and environment.

#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define PARENT 3
#define HEARTBEAT_PORT 9000
#define HEARTBEAT 0xB7
#define PORT 5000
#define MAX_ITEMS 64

static void die(const char *what)
{
	dprintf(1, "foreign init: %s\n", what);
	exit(1); // the kernel panics, as it does under AWS's
}

static void greet(void)
{
	struct sockaddr_vm parent = {.svm_family = AF_VSOCK, .svm_cid = PARENT, .svm_port = HEARTBEAT_PORT};
	unsigned char byte = HEARTBEAT;
	int fd = socket(AF_VSOCK, SOCK_STREAM, 0);

	if (fd < 0 || connect(fd, (struct sockaddr *)&parent, sizeof parent) < 0)
		die("no parent");
	if (write(fd, &byte, 1) != 1 || read(fd, &byte, 1) != 1 || byte != HEARTBEAT)
		die("no heartbeat");
	close(fd);
}

// One item a line.
static void read_items(const char *path, char **items)
{
	static char text[2][4096];
	static int used;
	char *at = text[used++];
	int fd = open(path, O_RDONLY), count = 0;
	ssize_t size = fd < 0 ? -1 : read(fd, at, sizeof text[0] - 1);

	if (size < 0)
		die("no /env or /cmd");
	for (char *item = strtok(at, "\n"); item && count < MAX_ITEMS; item = strtok(NULL, "\n"))
		items[count++] = item;
	close(fd);
}

static void enter_root(void)
{
	if (mount("/rootfs", "/rootfs", NULL, MS_BIND, NULL) || chdir("/rootfs") || mount(".", "/", NULL, MS_MOVE, NULL) ||
	    chroot(".") || chdir("/"))
		die("no /rootfs");
	if (mount("proc", "/proc", "proc", 0, NULL) || mount("sysfs", "/sys", "sysfs", 0, NULL) ||
	    mount("tmpfs", "/run", "tmpfs", 0, NULL) || mount("tmpfs", "/tmp", "tmpfs", 0, NULL) ||
	    mount("dev", "/dev", "devtmpfs", 0, NULL) || mkdir("/dev/shm", 0755) ||
	    mount("shm", "/dev/shm", "tmpfs", 0, NULL))
		die("no mounts");
}

static int serve(int argc, char **argv)
{
	struct sockaddr_vm here = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = PORT};
	int listener = socket(AF_VSOCK, SOCK_STREAM, 0);
	char buffer[4096];

	if (listener < 0 || bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 8))
		return 1;
	dprintf(1, "foreign command: serving\n");
	for (;;) {
		int fd = accept(listener, NULL, NULL);
		ssize_t size;

		dprintf(fd, "%s %s GREETING=%s\n", argv[0], argc > 1 ? argv[1] : "-", getenv("GREETING"));
		while ((size = read(fd, buffer, sizeof buffer)) > 0) {
			if (size == 4 && !memcmp(buffer, "quit", 4))
				return 0;
			if (write(fd, buffer, size) != size)
				break;
		}
		close(fd);
	}
}

int main(int argc, char **argv)
{
	char *env[MAX_ITEMS + 1] = {0}, *cmd[MAX_ITEMS + 1] = {0};

	if (getpid() != 1)
		return serve(argc, argv);
	mount("dev", "/dev", "devtmpfs", 0, NULL); // the kernel may have done it
	greet();
	read_items("/env", env);
	read_items("/cmd", cmd);
	enter_root();
	pid_t child = fork();
	if (child == 0) {
		execvpe(cmd[0], cmd, env);
		_exit(127);
	}
	while (wait(NULL) != child)
		;
	reboot(RB_AUTOBOOT);
	return 0;
}
