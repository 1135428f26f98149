// SPDX-License-Identifier: MIT
// The first process of an enclave image made from a container image: greet the parent, make /rootfs the root, run the
// container's command as its user, collect what dies, power off when the command has ended.
//
// The layout is the one that AWS's tools make: /rootfs, /cmd and /env (one item a line) in the second ramdisk; /user
// (uid, gid, further groups, blanks between) and /workdir are ours. All are measured into PCR2, this program into PCR1.
// As in the image of this project, the command line that was measured is compiled in and anything less halts; words
// that a launcher appended reach no process: arguments and environment come from the files alone.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <net/if.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "first_process.h"

#define MAX_FILE (1 << 20) // bytes of /cmd, /env, /user, /workdir
#define MAX_GROUPS 64

// The bytes of a file and a NUL; halts where there is none: an archive that was not unpacked must not run half.
static char *read_file(const char *path, size_t *size)
{
	char *text = malloc(MAX_FILE + 1);
	size_t length = 0;
	ssize_t count = 0;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || text == NULL)
		HALT("a file of the image is missing: /cmd, /env, /user or /workdir");
	while (length < MAX_FILE && (count = read(fd, text + length, MAX_FILE - length)) > 0)
		length += (size_t)count;
	if (count < 0 || length == MAX_FILE)
		HALT("a file of the image cannot be read, or is too long");
	close(fd);
	text[length] = '\0';
	*size = length;
	return text;
}

// The lines of a file, each ended by a newline, as a vector that ends in NULL.
static char **read_lines(const char *path)
{
	size_t size, count = 0;
	char *text = read_file(path, &size), **lines, *at = text;

	for (size_t index = 0; index < size; index++)
		count += text[index] == '\n';
	lines = calloc(count + 1, sizeof(*lines));
	if (lines == NULL)
		HALT("no memory");
	for (size_t index = 0; index < count; index++) {
		char *end = strchr(at, '\n');

		if (end == NULL)
			HALT("a NUL in /cmd or /env");
		*end = '\0';
		lines[index] = at;
		at = end + 1;
	}
	return lines;
}

static void check_command_line(void)
{
	size_t size;

	mkdir("/proc", 0555);
	if (mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) != 0)
		HALT("no /proc");
	if (!holds_command_line(read_file("/proc/cmdline", &size)))
		HALT("the command line is not the one measured");
	umount("/proc");
}

static void enter_root(void)
{
	if (mount("/rootfs", "/rootfs", NULL, MS_BIND, NULL) != 0 || chdir("/rootfs") != 0 ||
	    mount(".", "/", NULL, MS_MOVE, NULL) != 0 || chroot(".") != 0 || chdir("/") != 0)
		HALT("/rootfs does not become the root");
}

static void mount_or_halt(const char *type, const char *where, unsigned long flags, const char *options)
{
	mkdir(where, 0755);
	if (mount(type, where, type, flags, options) != 0)
		HALT("a file system does not mount");
}

static void make_file_systems(void)
{
	const unsigned long plain = MS_NOSUID | MS_NODEV | MS_NOEXEC;

	mount_or_halt("proc", "/proc", plain, NULL);
	mount_or_halt("sysfs", "/sys", plain | MS_RDONLY, NULL);
	mount_or_halt("devtmpfs", "/dev", MS_NOSUID | MS_NOEXEC, "mode=0755");
	mount_or_halt("tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777");
	mount_or_halt("tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=0755");
	mount_or_halt("tmpfs", "/tmp", MS_NOSUID | MS_NODEV, "mode=1777");
	mkdir("/dev/pts", 0755);
	mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "ptmxmode=0666"); // where the kernel has it
	if (symlink("/proc/self/fd", "/dev/fd") != 0 || symlink("/proc/self/fd/0", "/dev/stdin") != 0 ||
	    symlink("/proc/self/fd/1", "/dev/stdout") != 0 || symlink("/proc/self/fd/2", "/dev/stderr") != 0)
		HALT("no links in /dev");
}

// 127.0.0.1 is the kernel's own doing once the interface is up.
static void start_loopback(void)
{
	struct ifreq request = {.ifr_name = "lo"};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return;
	if (ioctl(fd, SIOCGIFFLAGS, &request) == 0) {
		request.ifr_flags |= IFF_UP;
		ioctl(fd, SIOCSIFFLAGS, &request);
	}
	close(fd);
}

static void become(char *user)
{
	gid_t groups[MAX_GROUPS];
	unsigned long numbers[MAX_GROUPS + 2];
	size_t count = 0;
	char *end = user;

	while (count < MAX_GROUPS + 2 && *end != '\n' && *end != '\0') {
		char *start = end;

		numbers[count++] = strtoul(start, &end, 10);
		if (end == start)
			HALT("/user is no list of numbers");
	}
	if (count < 2 || *end != '\n')
		HALT("/user is no list of numbers");
	for (size_t index = 2; index < count; index++)
		groups[index - 2] = (gid_t)numbers[index];
	// The command's own device and console; where there is no NSM there is none to give.
	if (chown("/dev/nsm", (uid_t)numbers[0], (gid_t)numbers[1]) != 0 && errno != ENOENT)
		HALT("/dev/nsm has no owner");
	if (fchown(STDOUT_FILENO, (uid_t)numbers[0], (gid_t)numbers[1]) != 0)
		HALT("the console has no owner");
	if (setgroups(count - 2, groups) != 0 || setgid((gid_t)numbers[1]) != 0 || setuid((uid_t)numbers[0]) != 0)
		HALT("the user cannot be taken");
}

static void run_command(char **command, char **environment, char *user, char *workdir)
{
	int nothing = open("/dev/null", O_RDONLY);

	setsid();
	if (nothing >= 0) {
		dup2(nothing, STDIN_FILENO);
		close(nothing);
	}
	become(user);
	if (chdir(workdir) != 0) {
		dprintf(STDERR_FILENO, "init: no working directory %s: %s\n", workdir, strerror(errno));
		_exit(127);
	}
	environ = environment; // execvp looks for the command in its PATH
	execvp(command[0], command);
	dprintf(STDERR_FILENO, "init: %s does not start: %s\n", command[0], strerror(errno));
	_exit(127);
}

int main(void)
{
	char **command, **environment, *user, *workdir;
	pid_t child, ended;
	size_t size;
	int status = 0;

	umask(022);
	open_console();
	check_command_line();
	command = read_lines("/cmd");
	environment = read_lines("/env");
	user = read_file("/user", &size);
	workdir = read_lines("/workdir")[0];
	if (command[0] == NULL || workdir == NULL)
		HALT("an empty /cmd or /workdir");
	greet();
	enter_root();
	make_file_systems();
	open_console();
	start_loopback();
	child = fork();
	if (child == 0)
		run_command(command, environment, user, workdir);
	if (child < 0)
		HALT("no process for the command");
	do {
		ended = wait(&status);
	} while (ended != child && !(ended < 0 && errno == ECHILD));
	dprintf(STDERR_FILENO, "init: the command has ended with %s %d\n", WIFSIGNALED(status) ? "signal" : "exit code",
		WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
	power_off();
}
