/* The floor under every server: one process, epoll, one head and sendfile per request, no parsing, no checks, no log.
 * usage: floor PORT FILE... ; answers every request with the next file. Used by `oca-bench serve` only. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

struct state { int file; off_t at; };
static struct state states[65536];

int main(int argc, char **argv)
{
    int one = 1, files = argc - 2, next = 0, ep = epoll_create1(0);
    signal(SIGPIPE, SIG_IGN);
    int *fds = calloc(files, sizeof *fds);
    off_t *sizes = calloc(files, sizeof *sizes);
    for (int i = 0; i < files; i++) {
        struct stat st;
        fds[i] = open(argv[i + 2], O_RDONLY);
        if (fds[i] < 0 || fstat(fds[i], &st)) { perror(argv[i + 2]); return 1; }
        sizes[i] = st.st_size;
    }
    int l = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(l, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (bind(l, (void *)&a, sizeof a) || listen(l, 4096)) { perror("listen"); return 1; }
    struct epoll_event e = { .events = EPOLLIN, .data.fd = l }, events[256];
    epoll_ctl(ep, EPOLL_CTL_ADD, l, &e);
    for (;;) {
        int n = epoll_wait(ep, events, 256, -1);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == l) {
                while ((fd = accept4(l, NULL, NULL, SOCK_NONBLOCK)) >= 0 && fd < 65536) {
                    states[fd].file = -1;
                    e = (struct epoll_event){ .events = EPOLLIN | EPOLLOUT | EPOLLET, .data.fd = fd };
                    epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
                }
                continue;
            }
            for (;;) {
                struct state *s = &states[fd];
                if (s->file < 0) {
                    char buffer[16384], head[128];
                    ssize_t got = recv(fd, buffer, sizeof buffer, 0);
                    if (got == 0 || (got < 0 && errno != EAGAIN)) { close(fd); break; }
                    if (got < 0) break;
                    s->file = next++ % files;
                    s->at = 0;
                    int length = snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\nContent-Length: %lld\r\n\r\n", (long long)sizes[s->file]);
                    if (send(fd, head, length, MSG_MORE) != length) { close(fd); break; }
                }
                ssize_t sent = sendfile(fd, fds[s->file], &s->at, sizes[s->file] - s->at);
                if (sent < 0 && errno != EAGAIN) { close(fd); break; }
                if (s->at == sizes[s->file]) { s->file = -1; continue; }
                if (sent < 0) break;
            }
        }
    }
}
