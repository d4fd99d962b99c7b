/* SPDX-License-Identifier: Apache-2.0
 * Flows over a Service: `flows serve ADDRESS PORT`, `flows connect ADDRESS PORT COUNT`, `flows send ADDRESS PORT MIB`.
 * connect: one connection after the other, an octet each way, closed with a reset, so that no port stays in TIME_WAIT.
 * Prints seconds of wall time, and of CPU time of this process: user, system.
 */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <signal.h>

static char block[1 << 20];

static void must(int ok, const char *what) {
    if (!ok) {
        perror(what);
        exit(1);
    }
}

static int tcp(void) {
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    must(fd >= 0, "socket");
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

static double seconds(struct timeval t) { return t.tv_sec + t.tv_usec / 1e6; }

static void report(double wall) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    printf("%.6f %.6f %.6f\n", wall, seconds(used.ru_utime), seconds(used.ru_stime));
}

static void stop(int signal) {
    (void)signal;
    report(0);
    fflush(stdout);
    _exit(0);
}

static void serve(struct sockaddr_in *to) {
    int listener = tcp();
    signal(SIGTERM, stop);
    must(bind(listener, (void *)to, sizeof *to) == 0 && listen(listener, 1024) == 0, "listen");
    puts("ready");
    fflush(stdout);
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        ssize_t got, total = 0;
        if (fd < 0)
            continue;
        while ((got = recv(fd, block, sizeof block, 0)) > 0)
            if ((total += got) == 1)
                send(fd, block, 1, MSG_NOSIGNAL);
        close(fd);
    }
}

int main(int argc, char **argv) {
    struct sockaddr_in to = {.sin_family = AF_INET};
    struct timespec from, until;
    struct linger hard = {1, 0};
    must(argc >= 4 && inet_pton(AF_INET, argv[2], &to.sin_addr) == 1, "usage");
    to.sin_port = htons(atoi(argv[3]));
    if (!strcmp(argv[1], "serve"))
        serve(&to);
    long count = atol(argv[4]);
    int sending = !strcmp(argv[1], "send"), fd = -1;
    clock_gettime(CLOCK_MONOTONIC, &from);
    for (long index = 0; index < count; index++) {
        if (!sending || fd < 0) {
            fd = tcp();
            must(connect(fd, (void *)&to, sizeof to) == 0, "connect");
        }
        if (sending) {
            for (size_t sent = 0; sent < sizeof block;) {
                ssize_t done = send(fd, block + sent, sizeof block - sent, MSG_NOSIGNAL);
                must(done > 0, "send");
                sent += done;
            }
            continue;
        }
        must(send(fd, block, 1, MSG_NOSIGNAL) == 1 && recv(fd, block, 1, 0) == 1, "exchange");
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
        close(fd);
    }
    clock_gettime(CLOCK_MONOTONIC, &until);
    report(until.tv_sec - from.tv_sec + (until.tv_nsec - from.tv_nsec) / 1e9);
    return 0;
}
