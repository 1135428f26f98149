// SPDX-License-Identifier: MIT
// The program in the container of test_container.py: it tells as whom, where and with what it runs, then echoes on a
// vsock port what it is sent until that is `quit`.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <grp.h>
#include <linux/vm_sockets.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

extern char **environ;

static const char *loopback(void)
{
	struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons(8080)};
	int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);

	if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 1) ||
	    connect(client, (struct sockaddr *)&here, sizeof here))
		return "no loopback";
	return "loopback";
}

static void tell(int argc, char **argv)
{
	gid_t groups[8];
	int count = getgroups(8, groups), written;
	char directory[256] = "?";
	struct stat file;

	for (int index = 0; index < argc; index++)
		printf("arg %s\n", argv[index]);
	for (char **item = environ; *item; item++)
		printf("env %s\n", *item);
	printf("user %d %d", getuid(), getgid());
	for (int index = 0; index < count; index++)
		printf(" %d", groups[index]);
	printf("\ncwd %s\n", getcwd(directory, sizeof directory));
	if (stat("/srv/data", &file) == 0)
		printf("data %o %d %d %d\n", file.st_mode, file.st_uid, file.st_gid, (int)file.st_nlink);
	written = access("/srv/data", W_OK) == 0;
	printf("own %d\nwhiteout %d\nchild of 1: %d\n%s\n", written, access("/srv/gone", F_OK), getppid(), loopback());
	printf("init %d cmd %d\n", access("/init", F_OK), access("/cmd", F_OK));
}

int main(int argc, char **argv)
{
	struct sockaddr_vm here = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = 5000};
	int listener = socket(AF_VSOCK, SOCK_STREAM, 0);
	char buffer[4096];

	tell(argc, argv);
	if (fork() == 0) {
		if (fork() == 0)
			_exit(3); // an orphan, for /init to collect
		_exit(0); // and our own child, which must not go on to serve in our place
	}
	if (listener < 0 || bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 8))
		return 1;
	printf("serving\n");
	fflush(stdout);
	for (;;) {
		int fd = accept(listener, NULL, NULL);
		ssize_t size;

		while ((size = read(fd, buffer, sizeof buffer)) > 0) {
			if (size == 4 && !memcmp(buffer, "quit", 4))
				return 42;
			if (write(fd, buffer, size) != size)
				break;
		}
		close(fd);
	}
}
