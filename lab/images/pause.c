// SPDX-License-Identifier: Apache-2.0
/*
 * The sandbox's only process: keeps the pod's namespaces alive, reaps what is
 * orphaned into its PID namespace where that is shared, ends on SIGINT/SIGTERM.
 */
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static void end(int signo)
{
	(void)signo;
	_exit(0);
}

static void reap(int signo)
{
	(void)signo;
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
}

int main(void)
{
	struct sigaction ending = {.sa_handler = end};
	struct sigaction reaping = {.sa_handler = reap, .sa_flags = SA_NOCLDSTOP};

	if (sigaction(SIGINT, &ending, NULL) || sigaction(SIGTERM, &ending, NULL) ||
	    sigaction(SIGCHLD, &reaping, NULL))
		return EXIT_FAILURE;
	for (;;)
		pause();
}
