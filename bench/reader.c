/* A client that costs little beside what it measures, and yet copies all that it receives, as a player does.
 *
 * usage: reader PORT CONNECTIONS THREADS SECONDS HEADS PAUSE
 *
 * HEADS is a file of whole request heads, each ended by an empty line; every connection (to 127.0.0.1, kept alive) asks
 * for the next of them PAUSE microseconds after its answer is whole, or a millisecond later. It reads up to 1 MiB at a
 * time; wrk reads 8 KiB, which keeps its processor busier than the server's. Latency: from the request to the last byte of its answer.
 * Says one line of JSON; an answer is an error if it is no 200 with a Content-Length, and the first such is shown. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { PIECE = 1 << 20, HEAD = 16 << 10, STEP = 10, STEPS = 30 * 1000 * 1000 / STEP };

struct request { const char *at; size_t bytes; };
struct connection { int fd, length; long long left, asked, due; struct connection *next; char head[HEAD]; };
struct thread {
    pthread_t id;
    int connections, next;
    long long bytes, requests, errors, ended;
    struct connection *first, *last; /* those that pause, in the order in which they go on */
    unsigned *took; /* requests by their time, in steps of 10 microseconds */
    char wrong[512];
};

static struct request *requests;
static int count;
static unsigned short port;
static long long begin, end, pause_us;

static long long now(void) /* microseconds */
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

static void complain(struct thread *t, const char *what)
{
    if (!t->errors++) snprintf(t->wrong, sizeof t->wrong, "%.*s", (int)strcspn(what, "\r\n"), what);
}

static int ask(struct thread *t, struct connection *c)
{
    struct request *r = &requests[t->next++ % count];
    c->length = 0;
    c->left = -1;
    c->asked = now();
    return send(c->fd, r->at, r->bytes, MSG_NOSIGNAL) == (ssize_t)r->bytes;
}

/* The answer is whole: go on at once, or after the pause. */
static int rest(struct thread *t, struct connection *c)
{
    if (!pause_us) return ask(t, c);
    c->due = t->ended + pause_us;
    c->next = NULL;
    t->last = *(t->first ? &t->last->next : &t->first) = c;
    return 1;
}

static int dial(struct thread *t, struct connection *c, int ep)
{
    int one = 1;
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    struct epoll_event e = { .events = EPOLLIN, .data.ptr = c };
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (void *)&a, sizeof a)) return 0;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return !fcntl(c->fd, F_SETFL, O_NONBLOCK) && !epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &e) && ask(t, c);
}

/* Bytes after the head that came with it, or -1 if the head is not whole, or -2 if it is not what it has to be. */
static long long header(struct connection *c)
{
    c->head[c->length] = 0;
    char *over = strstr(c->head, "\r\n\r\n"), *length = strcasestr(c->head, "\r\nContent-Length:");
    if (!over) return c->length < HEAD - 1 ? -1 : -2;
    if (strncmp(c->head, "HTTP/1.1 200 ", 13) || !length || length > over) return -2;
    c->left = atoll(length + 17);
    return c->length - (over + 4 - c->head);
}

/* Read what is there. 0: this connection is over. */
static int take(struct thread *t, struct connection *c, char *piece)
{
    long long got, most = c->left < 0 ? HEAD - 1 - c->length : PIECE;
    got = recv(c->fd, c->left < 0 ? c->head + c->length : piece, most, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return 1;
    if (got <= 0) {
        complain(t, got ? strerror(errno) : "the connection was closed before the answer was whole");
        return 0;
    }
    t->bytes += got;
    if (c->left < 0) {
        c->length += got;
        if ((got = header(c)) == -1) return 1;
        if (got == -2) return complain(t, c->head), 0;
    }
    if ((c->left -= got) > 0) return 1;
    if (c->left < 0) return complain(t, "more came than was promised"), 0;
    t->ended = now();
    long long step = (t->ended - c->asked) / STEP;
    t->took[step < STEPS ? step : STEPS - 1]++;
    t->requests++;
    return rest(t, c);
}

static void *drive(void *of)
{
    struct thread *t = of;
    struct connection *connections = calloc(t->connections, sizeof *connections);
    struct epoll_event events[256];
    char *piece = malloc(PIECE);
    int ep = epoll_create1(EPOLL_CLOEXEC), open = 0;
    for (int i = 0; i < t->connections; i++) {
        if (dial(t, &connections[i], ep)) open++;
        else complain(t, strerror(errno));
    }
    while (open && now() < end) {
        int idle = 100;
        for (struct connection *c; (c = t->first) && c->due <= now();) {
            t->first = c->next;
            if (!ask(t, c)) complain(t, "the connection was closed while it was idle");
        }
        if (t->first) idle = (t->first->due - now() + 999) / 1000;
        int n = epoll_wait(ep, events, 256, idle < 0 ? 0 : idle > 100 ? 100 : idle);
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (take(t, c, piece)) continue;
            close(c->fd);
            /* Once more, or the load would dwindle; a server that refuses again ends it. */
            if (!dial(t, c, ep)) open--;
        }
    }
    return NULL;
}

static void load(const char *path)
{
    struct stat st;
    int fd = open(path, O_RDONLY);
    char *text, *at, *over;
    if (fd < 0 || fstat(fd, &st) || !(text = calloc(1, st.st_size + 1)) || read(fd, text, st.st_size) != st.st_size) {
        perror(path);
        exit(1);
    }
    for (at = text; (over = strstr(at, "\r\n\r\n")); at = over + 4) {
        requests = realloc(requests, (count + 1) * sizeof *requests);
        requests[count++] = (struct request){ at, over + 4 - at };
    }
    if (!count || *at) {
        fprintf(stderr, "%s: no heads, or the last one is not whole\n", path);
        exit(1);
    }
}

static double within(unsigned *took, long long all, double share) /* microseconds */
{
    long long seen = 0;
    for (int i = 0; i < STEPS; i++)
        if ((seen += took[i]) >= all * share && seen) return (i + 0.5) * STEP;
    return 0;
}

int main(int argc, char **argv)
{
    if (argc != 7) {
        fprintf(stderr, "usage: reader PORT CONNECTIONS THREADS SECONDS HEADS PAUSE\n");
        return 2;
    }
    int connections = atoi(argv[2]), threads = atoi(argv[3]);
    port = atoi(argv[1]);
    pause_us = atoll(argv[6]);
    load(argv[5]);
    struct thread *all = calloc(threads, sizeof *all), sum = { 0 };
    begin = now();
    end = begin + (long long)(atof(argv[4]) * 1e6);
    for (int i = 0; i < threads; i++) {
        all[i].connections = connections / threads + (i < connections % threads);
        all[i].next = i * count / threads;
        all[i].took = calloc(STEPS, sizeof *all[i].took);
        pthread_create(&all[i].id, NULL, drive, &all[i]);
    }
    sum.took = calloc(STEPS, sizeof *sum.took);
    for (int i = 0; i < threads; i++) {
        pthread_join(all[i].id, NULL);
        sum.bytes += all[i].bytes;
        sum.requests += all[i].requests;
        sum.errors += all[i].errors;
        for (int step = 0; step < STEPS; step++) sum.took[step] += all[i].took[step];
        if (all[i].errors) fprintf(stderr, "%s\n", all[i].wrong);
    }
    printf("{\"bytes\":%lld,\"requests\":%lld,\"us\":%lld,\"p50\":%.0f,\"p99\":%.0f,\"errors\":%lld}\n", sum.bytes, sum.requests,
           now() - begin, within(sum.took, sum.requests, 0.5), within(sum.took, sum.requests, 0.99), sum.errors);
    return 0;
}
