// SPDX-License-Identifier: MIT
// The first process of the isolate: make a file system, greet the parent, start the runtime, power off when it ends.
//
// The kernel hands over what a launcher appended to the command line as arguments and environment; both are dropped
// unread. The measurement does not fix where the command line ends and the ramdisk begins, so the line that this image
// was built with is compiled in, and anything less halts. Nothing here is ever restarted.
//
// On the console only constant lines appear. Exit by reboot(2): QEMU ends with -no-reboot, Nitro ends the enclave.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "first_process.h"

#define PYTHON "/usr/bin/python3.13"
#if defined(__x86_64__)
#define LOADER "/lib64/ld-linux-x86-64.so.2" // its ELF interpreter
#elif defined(__aarch64__)
#define LOADER "/lib/ld-linux-aarch64.so.1"
#else
#error "no enclave has this processor"
#endif
#define TERMINALS "/sys/class/tty/"
#define MAX_CONSOLES 1024 // bytes of their table
#define MAX_COMMAND_LINE 8192 // bytes; COMMAND_LINE_SIZE of x86 and arm64 is 2048

static void mount_or_halt(const char *type, const char *where, unsigned long flags, const char *options)
{
	mkdir(where, 0755);
	if (mount(type, where, type, flags, options) != 0 && errno != EBUSY)
		HALT("a file system does not mount");
}

static void make_file_systems(void)
{
	const unsigned long plain = MS_NOSUID | MS_NODEV | MS_NOEXEC;

	mount_or_halt("proc", "/proc", plain, "hidepid=2");
	mount_or_halt("sysfs", "/sys", plain, NULL); // read-only once the console is off
	mount_or_halt("devtmpfs", "/dev", MS_NOSUID | MS_NOEXEC, "mode=0755");
	mount_or_halt("tmpfs", "/dev/shm", plain, "mode=0700");
	mount_or_halt("tmpfs", "/run", plain, "mode=0755");
	mount_or_halt("tmpfs", "/tmp", plain, "mode=1777,size=16m");
	mount_or_halt("cgroup2", "/sys/fs/cgroup", plain, NULL);
}

// Read a file of /proc or /sys whole; return its length, or -1 where it is not there or longer than `limit`.
static ssize_t read_text(const char *path, char *text, size_t limit)
{
	size_t length = 0;
	ssize_t count = 0;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return -1;
	while (length <= limit && (count = read(fd, text + length, limit + 1 - length)) > 0)
		length += (size_t)count;
	close(fd);
	if (count < 0 || length > limit)
		return -1;
	text[length] = '\0';
	return (ssize_t)length;
}

static void check_command_line(void)
{
	static char text[MAX_COMMAND_LINE + 1];

	if (read_text("/proc/cmdline", text, MAX_COMMAND_LINE) < 0)
		HALT("no /proc/cmdline");
	if (!holds_command_line(text))
		HALT("the command line is not the one measured");
}

static bool write_setting(const char *path, const char *value)
{
	size_t length = strlen(value);
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool written = fd >= 0 && write(fd, value, length) == (ssize_t)length;

	if (fd >= 0)
		close(fd);
	return written;
}

// Take the kernel's messages from every console that it names; return how many it named, or -1.
static int silence_consoles(void)
{
	static char table[MAX_CONSOLES + 1], path[sizeof(TERMINALS) + MAX_CONSOLES + sizeof("/console")];
	int found = 0;

	if (read_text("/proc/consoles", table, MAX_CONSOLES) < 0)
		return -1;
	for (char *line = strtok(table, "\n"); line != NULL; line = strtok(NULL, "\n"), found++) {
		line[strcspn(line, " ")] = '\0'; // behind the name: what it can do
		strcat(strcat(strcpy(path, TERMINALS), line), "/console");
		if (!write_setting(path, "0")) // serial_core.c, since Linux 5.10; an early console has no such file
			return -1;
	}
	return found;
}

// From here on the kernel has no console: its messages may name processes and sizes, and a panic shows registers,
// whatever the log level is. The port itself stays, for the constant lines of this program. A launcher may have added
// consoles to the one of the image's own command line, early ones that are kept among them: the kernel is asked until
// it names none.
static void silence_kernel(void)
{
	if (silence_consoles() < 0 || silence_consoles() != 0)
		HALT("the kernel keeps its console");
	if (mount(NULL, "/sys", NULL, MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) != 0)
		HALT("a file system does not become read-only");
}

// In the ramdisk /init alone may be executed: a launcher's rdinit= or init= finds nothing else to start as process 1.
static void allow_python(void)
{
	if (chmod(PYTHON, 0755) != 0 || chmod(LOADER, 0755) != 0)
		HALT("no interpreter");
}

static pid_t start_runtime(void)
{
	static char *const arguments[] = {
		PYTHON, "-I", "-S", "-B", "-X", "utf8", "/app/start.pyc", NULL,
	};
	static char *const environment[] = {NULL};
	const struct rlimit none = {0, 0};
	pid_t child;

	setrlimit(RLIMIT_CORE, &none);
	child = fork();
	if (child == 0) {
		setsid();
		execve(arguments[0], arguments, environment);
		say("init: halt: no runtime\n");
		_exit(127);
	}
	return child;
}

int main(void)
{
	pid_t runtime, ended;

	umask(022);
	open_console(); // the kernel's own initramfs has /dev/console; devtmpfs covers it in a moment
	make_file_systems();
	open_console();
	check_command_line();
	say("init: ready\n");
	silence_kernel();
	if (chdir("/") != 0)
		HALT("no root directory");
	chmod("/dev/nsm", 0600);
	greet();
	allow_python();
	runtime = start_runtime();
	if (runtime < 0)
		HALT("no process for the runtime");
	do {
		ended = wait(NULL);
	} while (ended != runtime && !(ended < 0 && errno == ECHILD));
	say("init: the runtime has ended\n");
	power_off();
}
