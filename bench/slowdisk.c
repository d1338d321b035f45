/* A directory seen through a slow disk that can be told to fail: a FUSE file system for tests and benchmarks.
 *
 * usage: slowdisk SOURCE MOUNTPOINT DELAY_MS      as root; ends, and unmounts, at the end of its standard input
 *
 * Every read takes DELAY_MS longer, several at once as on a disk with a queue. Pages are cached as usual, so only
 * content that is not in memory is slow. Lines on standard input, each answered by one on standard output:
 *   ok | eio | read-eio | enospc     from now on: work, fail all, fail reads, fail writes and creations for lack of room
 *   reads | bytes                    how many reads, and how many bytes by them, have come through so far
 * It speaks the kernel's protocol on /dev/fuse (linux/fuse.h) itself, so it needs no library.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#define THREADS 32
#define MOST (1 << 20)          /* bytes of one read or write */
#define NODES (1 << 20)

enum { OK, EIO_ALL, EIO_READS, NO_ROOM };

static int device;
static long delay_ms;
static char root[4096];
static atomic_int fault;
static atomic_long reads, read_bytes;

/* Nodes are paths below the source; number 1 is the source itself. They are never forgotten: a test ends soon. */
static char *paths[NODES];
static uint64_t nodes = 1;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int below(char *into, uint64_t node, const char *name)
{
    const char *path = paths[node];
    int length = name ? snprintf(into, 4096, "%s/%s", path, name) : snprintf(into, 4096, "%s", path);
    return length < 4096 ? 0 : -ENAMETOOLONG;
}

static uint64_t node_of(const char *path)
{
    pthread_mutex_lock(&lock);
    uint64_t found = 0;
    for (uint64_t n = 1; n <= nodes && !found; n++)
        if (paths[n] && !strcmp(paths[n], path))
            found = n;
    if (!found && nodes + 1 < NODES) {
        found = ++nodes;
        paths[found] = strdup(path);
    }
    pthread_mutex_unlock(&lock);
    return found;
}

static void moved(const char *from, const char *to)
{
    size_t length = strlen(from);
    pthread_mutex_lock(&lock);
    for (uint64_t n = 2; n <= nodes; n++) {
        if (!paths[n])
            continue;
        if (!strncmp(paths[n], from, length) && (paths[n][length] == 0 || paths[n][length] == '/')) {
            char *fresh = NULL;
            if (asprintf(&fresh, "%s%s", to, paths[n] + length) > 0) {
                free(paths[n]);
                paths[n] = fresh;
            }
        } else if (!strcmp(paths[n], to)) {
            paths[n][0] = 0;        /* replaced: whoever still has it open has the descriptor */
        }
    }
    pthread_mutex_unlock(&lock);
}

static void answer(uint64_t unique, int error, const void *data, size_t length)
{
    struct fuse_out_header head = {.len = sizeof head + (error ? 0 : length), .error = error, .unique = unique};
    struct iovec parts[2] = {{&head, sizeof head}, {(void *)data, error ? 0 : length}};
    if (writev(device, parts, 2) < 0 && errno != ENOENT && errno != ENODEV)
        perror("slowdisk: answer");
}

static void attributes(struct fuse_attr *out, const struct stat *st, uint64_t node)
{
    *out = (struct fuse_attr){.ino = node, .size = st->st_size, .blocks = st->st_blocks, .atime = st->st_atim.tv_sec,
        .mtime = st->st_mtim.tv_sec, .ctime = st->st_ctim.tv_sec, .atimensec = st->st_atim.tv_nsec,
        .mtimensec = st->st_mtim.tv_nsec, .ctimensec = st->st_ctim.tv_nsec, .mode = st->st_mode,
        .nlink = st->st_nlink, .uid = st->st_uid, .gid = st->st_gid, .blksize = 4096};
}

/* 0 or a negative errno; `out` gets the entry of `path`. Attributes are not cached, so that faults show at once. */
static int entry(const char *path, struct fuse_entry_out *out)
{
    struct stat st;
    if (lstat(path, &st))
        return -errno;
    memset(out, 0, sizeof *out);
    out->nodeid = node_of(path);
    if (!out->nodeid)
        return -ENFILE;
    attributes(&out->attr, &st, out->nodeid);
    return 0;
}

static int set_attributes(const char *path, const struct fuse_setattr_in *in)
{
    if (in->valid & FATTR_MODE && chmod(path, in->mode & 07777))
        return -errno;
    if (in->valid & FATTR_SIZE && truncate(path, in->size))
        return -errno;
    if (in->valid & (FATTR_UID | FATTR_GID)
        && lchown(path, in->valid & FATTR_UID ? in->uid : (uid_t)-1, in->valid & FATTR_GID ? in->gid : (gid_t)-1))
        return -errno;
    if (in->valid & (FATTR_ATIME | FATTR_MTIME)) {
        struct timespec times[2] = {{in->atime, in->atimensec}, {in->mtime, in->mtimensec}};
        if (!(in->valid & FATTR_ATIME))
            times[0].tv_nsec = UTIME_OMIT;
        else if (in->valid & FATTR_ATIME_NOW)
            times[0].tv_nsec = UTIME_NOW;
        if (!(in->valid & FATTR_MTIME))
            times[1].tv_nsec = UTIME_OMIT;
        else if (in->valid & FATTR_MTIME_NOW)
            times[1].tv_nsec = UTIME_NOW;
        if (utimensat(AT_FDCWD, path, times, AT_SYMLINK_NOFOLLOW))
            return -errno;
    }
    return 0;
}

static size_t list(DIR *directory, char *into, size_t room, uint64_t from)
{
    size_t used = 0;
    struct dirent *each;
    seekdir(directory, (long)from);
    while ((each = readdir(directory))) {
        size_t length = strlen(each->d_name), size = FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET + length);
        if (used + size > room)
            break;
        struct fuse_dirent *out = (struct fuse_dirent *)(into + used);
        memset(out, 0, size);
        *out = (struct fuse_dirent){.ino = each->d_ino, .off = telldir(directory), .namelen = length, .type = each->d_type};
        memcpy(out->name, each->d_name, length);
        used += size;
    }
    return used;
}

static int writes(uint32_t opcode)
{
    return opcode == FUSE_WRITE || opcode == FUSE_CREATE || opcode == FUSE_MKDIR || opcode == FUSE_FALLOCATE;
}

static void serve(struct fuse_in_header *in, void *body, char *scratch)
{
    char path[4096], other[4096];
    int error = 0, now = atomic_load(&fault);
    union {
        struct fuse_entry_out entry;
        struct fuse_attr_out attr;
        struct fuse_open_out open;
        struct fuse_write_out write;
        struct fuse_statfs_out statfs;
        struct fuse_init_out init;
        struct {
            struct fuse_entry_out entry;
            struct fuse_open_out open;
        } create;
    } out;
    memset(&out, 0, sizeof out);
    const void *data = &out;
    size_t length = 0;
    if (in->opcode == FUSE_FORGET || in->opcode == FUSE_BATCH_FORGET || in->opcode == FUSE_INTERRUPT)
        return;
    int ends = in->opcode == FUSE_RELEASE || in->opcode == FUSE_RELEASEDIR || in->opcode == FUSE_INIT;
    if (!ends && (now == EIO_ALL || (now == EIO_READS && in->opcode == FUSE_READ)))
        return answer(in->unique, -EIO, NULL, 0);
    if (now == NO_ROOM && writes(in->opcode))
        return answer(in->unique, -ENOSPC, NULL, 0);
    if (in->nodeid > nodes)
        return answer(in->unique, -ESTALE, NULL, 0);
    if (in->nodeid)
        error = below(path, in->nodeid, NULL);
    switch (error ? 0 : in->opcode) {
    case FUSE_INIT: {
        struct fuse_init_in *ask = body;
        out.init = (struct fuse_init_out){.major = FUSE_KERNEL_VERSION, .minor = FUSE_KERNEL_MINOR_VERSION,
            .max_readahead = ask->max_readahead, .max_background = 2 * THREADS, .congestion_threshold = 2 * THREADS,
            .max_write = MOST, .max_pages = MOST / 4096, .time_gran = 1,
            .flags = (FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_MAX_PAGES | FUSE_PARALLEL_DIROPS) & ask->flags};
        length = sizeof out.init;
        break;
    }
    case FUSE_LOOKUP:
        error = below(path, in->nodeid, body);
        error = error ? error : entry(path, &out.entry);
        length = sizeof out.entry;
        break;
    case FUSE_SETATTR:
        error = set_attributes(path, body);
        /* fall through */
    case FUSE_GETATTR: {
        struct stat st;
        if (!error && lstat(path, &st))
            error = -errno;
        if (!error)
            attributes(&out.attr.attr, &st, in->nodeid);
        length = sizeof out.attr;
        break;
    }
    case FUSE_OPEN: {
        int fd = open(path, ((struct fuse_open_in *)body)->flags & ~(O_CREAT | O_EXCL | O_NOFOLLOW));
        error = fd < 0 ? -errno : 0;
        out.open = (struct fuse_open_out){.fh = fd, .open_flags = FOPEN_KEEP_CACHE};
        length = sizeof out.open;
        break;
    }
    case FUSE_CREATE: {
        struct fuse_create_in *ask = body;
        error = below(path, in->nodeid, (char *)(ask + 1));
        int fd = error ? -1 : open(path, ask->flags | O_CREAT, ask->mode & ~ask->umask);
        error = error ? error : fd < 0 ? -errno : entry(path, &out.create.entry);
        out.create.open = (struct fuse_open_out){.fh = fd, .open_flags = FOPEN_KEEP_CACHE};
        length = sizeof out.create;
        break;
    }
    case FUSE_READ: {
        struct fuse_read_in *ask = body;
        atomic_fetch_add(&reads, 1);
        struct timespec pause = {delay_ms / 1000, delay_ms % 1000 * 1000000};
        nanosleep(&pause, NULL);
        ssize_t count = atomic_load(&fault) == OK || atomic_load(&fault) == NO_ROOM
            ? pread((int)ask->fh, scratch, ask->size < MOST ? ask->size : MOST, ask->offset) : (errno = EIO, -1);
        error = count < 0 ? -errno : 0;
        data = scratch;
        length = count < 0 ? 0 : count;
        atomic_fetch_add(&read_bytes, length);
        break;
    }
    case FUSE_WRITE: {
        struct fuse_write_in *ask = body;
        ssize_t count = pwrite((int)ask->fh, ask + 1, ask->size, ask->offset);
        error = count < 0 ? -errno : 0;
        out.write.size = count < 0 ? 0 : count;
        length = sizeof out.write;
        break;
    }
    case FUSE_RELEASE:
        close((int)((struct fuse_release_in *)body)->fh);
        break;
    case FUSE_FSYNC:
        error = fsync((int)((struct fuse_fsync_in *)body)->fh) ? -errno : 0;
        break;
    case FUSE_FSYNCDIR:
    case FUSE_FLUSH:
    case FUSE_ACCESS:
    case FUSE_DESTROY:
        break;
    case FUSE_OPENDIR: {
        DIR *directory = opendir(path);
        error = directory ? 0 : -errno;
        out.open.fh = (uintptr_t)directory;
        length = sizeof out.open;
        break;
    }
    case FUSE_READDIR: {
        struct fuse_read_in *ask = body;
        data = scratch;
        length = list((DIR *)(uintptr_t)ask->fh, scratch, ask->size < MOST ? ask->size : MOST, ask->offset);
        break;
    }
    case FUSE_RELEASEDIR:
        closedir((DIR *)(uintptr_t)((struct fuse_release_in *)body)->fh);
        break;
    case FUSE_MKDIR: {
        struct fuse_mkdir_in *ask = body;
        error = below(path, in->nodeid, (char *)(ask + 1));
        if (!error && mkdir(path, ask->mode & ~ask->umask))
            error = -errno;
        error = error ? error : entry(path, &out.entry);
        length = sizeof out.entry;
        break;
    }
    case FUSE_UNLINK:
    case FUSE_RMDIR:
        error = below(path, in->nodeid, body);
        if (!error && (in->opcode == FUSE_RMDIR ? rmdir(path) : unlink(path)))
            error = -errno;
        break;
    case FUSE_RENAME:
    case FUSE_RENAME2: {
        uint64_t to = *(uint64_t *)body;
        char *from_name = (char *)body + (in->opcode == FUSE_RENAME ? sizeof(struct fuse_rename_in) : sizeof(struct fuse_rename2_in));
        if (to > nodes)
            error = -ESTALE;
        error = error ? error : below(path, in->nodeid, from_name);
        error = error ? error : below(other, to, from_name + strlen(from_name) + 1);
        if (!error && rename(path, other))
            error = -errno;
        if (!error)
            moved(path, other);
        break;
    }
    case FUSE_STATFS: {
        struct statvfs st;
        error = statvfs(root, &st) ? -errno : 0;
        out.statfs.st = (struct fuse_kstatfs){.blocks = st.f_blocks, .bfree = st.f_bfree, .bavail = st.f_bavail,
            .files = st.f_files, .ffree = st.f_ffree, .bsize = st.f_bsize, .namelen = 255, .frsize = st.f_frsize};
        length = sizeof out.statfs;
        break;
    }
    default:
        error = error ? error : -ENOSYS;
    }
    answer(in->unique, error, data, length);
}

static void *work(void *unused)
{
    char *buffer = malloc(MOST + 65536), *scratch = malloc(MOST);
    for (;;) {
        ssize_t count = read(device, buffer, MOST + 65536);
        if (count < 0 && (errno == EINTR || errno == EAGAIN || errno == ENOENT))
            continue;
        if (count < (ssize_t)sizeof(struct fuse_in_header))
            return unused;                      /* unmounted */
        serve((struct fuse_in_header *)buffer, buffer + sizeof(struct fuse_in_header), scratch);
    }
}

int main(int count, char **words)
{
    if (count != 4 || (delay_ms = atol(words[3])) < 0 || !realpath(words[1], root)) {
        fprintf(stderr, "usage: slowdisk SOURCE MOUNTPOINT DELAY_MS\n");
        return 2;
    }
    /* It ends with the program that uses it, however that ends, since its input does: not before, by a signal. */
    signal(SIGHUP, SIG_IGN);
    signal(SIGINT, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    paths[1] = root;
    device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (device < 0) {
        perror("slowdisk: /dev/fuse");
        return 1;
    }
    char options[200];
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,max_read=%d", device, MOST);
    if (mount("slowdisk", words[2], "fuse", MS_NOSUID | MS_NODEV, options)) {
        perror("slowdisk: mount");
        return 1;
    }
    for (int n = 0; n < THREADS; n++) {
        pthread_t thread;
        pthread_create(&thread, NULL, work, NULL);
    }
    printf("mounted\n");
    fflush(stdout);
    char line[100];
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        static const char *const names[] = {"ok", "eio", "read-eio", "enospc"};
        int known = -1;
        for (int n = 0; n < 4; n++)
            if (!strcmp(line, names[n]))
                known = n;
        if (known >= 0)
            atomic_store(&fault, known);
        if (known >= 0 || !strcmp(line, "reads"))
            printf("%ld\n", atomic_load(&reads));
        else if (!strcmp(line, "bytes"))
            printf("%ld\n", atomic_load(&read_bytes));
        else
            printf("unknown\n");
        fflush(stdout);
    }
    umount2(words[2], MNT_DETACH);
    return 0;
}
