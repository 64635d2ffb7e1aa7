/* A switch between network interfaces with the rate and the delay of a real one, for kernels without netem.
 *
 *     cc -O2 -o slow_link tools/slow_link.c && ./slow_link MBIT_S DELAY_MS IF1 IF2 ...       (root)
 *
 * Each interface, a veth's end, is a port: frames go to the port whose board has their address, or to all. A board
 * sends and receives at MBIT_S (0: no limit), both at once; a frame's last byte arrives DELAY_MS after it was sent.
 * Segments stay together as the kernel gives them (up to 64 KB) and take the time that they would as frames of 1500
 * bytes with their gaps, and the next board hears of them when the last of them is there.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PORTS = 64, LARGEST = 1 << 17, GAP = 24, SHORTEST = 84 };

struct frame {
    struct frame *next;
    int64_t due;
    int size;
    char data[];
};

/* up, down: until when the board's cable is taken, in ns; first: frames on their way to it, in the order of due */
static struct port {
    int fd;
    int64_t up, down;
    struct frame *first, **last;
} ports[PORTS];
static struct { unsigned char address[6]; int port; } known[PORTS];
static int port_count, known_count;
static double ns_per_byte;
static int64_t delay_ns;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static int open_port(const char *name) {
    int one = 1, room = 32 << 20, fd = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL));
    struct sockaddr_ll at = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL), .sll_ifindex = if_nametoindex(name)};
    struct packet_mreq all = {.mr_ifindex = at.sll_ifindex, .mr_type = PACKET_MR_PROMISC};
    if (fd < 0 || !at.sll_ifindex || bind(fd, (struct sockaddr *)&at, sizeof at)) fail(name);
    if (setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, &one, sizeof one)) fail("PACKET_VNET_HDR");
    if (setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof one)) fail("PACKET_IGNORE_OUTGOING");
    if (setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &all, sizeof all)) fail("PACKET_ADD_MEMBERSHIP");
    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room);
    return fd;
}

/* The port of an address; -1 for all. */
static int port_of(const unsigned char *address) {
    for (int i = 0; i < known_count; i++)
        if (!memcmp(known[i].address, address, 6)) return known[i].port;
    return -1;
}

static int64_t wire_ns(const struct virtio_net_hdr *about, int size) {
    int segments = 1;
    if (about->gso_type != VIRTIO_NET_HDR_GSO_NONE && about->gso_size)
        segments = (size - about->hdr_len + about->gso_size - 1) / about->gso_size;
    int64_t bytes = size + (int64_t)(segments - 1) * about->hdr_len + segments * GAP;
    return (int64_t)((bytes < SHORTEST ? SHORTEST : bytes) * ns_per_byte);
}

static void send_to(int to, const char *data, int size, int64_t begin, int64_t wire) {
    struct port *port = &ports[to];
    int64_t arrived = begin + wire + delay_ns, free_at = port->down + wire;
    struct frame *frame = malloc(sizeof *frame + size);
    if (!frame) fail("malloc");
    port->down = arrived > free_at ? arrived : free_at;
    *frame = (struct frame){.due = port->down, .size = size};
    memcpy(frame->data, data, size);
    *port->last = frame;
    port->last = &frame->next;
}

static void take(int from) {
    static char data[LARGEST];
    ssize_t size;
    while ((size = recv(ports[from].fd, data, sizeof data, MSG_DONTWAIT)) > 0) {
        struct virtio_net_hdr about;
        const unsigned char *ethernet = (unsigned char *)data + sizeof about;
        if (size < (ssize_t)(sizeof about + ETH_HLEN)) continue;
        memcpy(&about, data, sizeof about);
        if (port_of(ethernet + 6) < 0 && known_count < PORTS) {
            memcpy(known[known_count].address, ethernet + 6, 6);
            known[known_count++].port = from;
        }
        int64_t now = now_ns(), wire = wire_ns(&about, size - sizeof about);
        int64_t begin = ports[from].up > now ? ports[from].up : now;
        ports[from].up = begin + wire;
        int to = port_of(ethernet);
        for (int i = 0; i < port_count; i++)
            if (i != from && (to < 0 || to == i)) send_to(i, data, size, begin, wire);
    }
}

/* Sends what is due; the time when the next frame is, or 0. */
static int64_t give(int64_t now) {
    int64_t next = 0;
    for (int i = 0; i < port_count; i++) {
        struct frame *frame;
        while ((frame = ports[i].first) && frame->due <= now) {
            if (send(ports[i].fd, frame->data, frame->size, 0) < 0 && errno != ENETDOWN && errno != ENXIO) perror("send");
            if (!(ports[i].first = frame->next)) ports[i].last = &ports[i].first;
            free(frame);
        }
        if (frame && (!next || frame->due < next)) next = frame->due;
    }
    return next;
}

int main(int argc, char **argv) {
    struct pollfd polled[PORTS];
    if (argc < 5 || argc - 3 > PORTS) {
        fprintf(stderr, "usage: slow_link MBIT_S DELAY_MS IF1 IF2 ...\n");
        return 2;
    }
    ns_per_byte = atof(argv[1]) > 0 ? 8000 / atof(argv[1]) : 0;
    delay_ns = (int64_t)(atof(argv[2]) * 1e6);
    prctl(PR_SET_TIMERSLACK, 1);
    for (; port_count < argc - 3; port_count++) {
        ports[port_count].fd = open_port(argv[3 + port_count]);
        ports[port_count].last = &ports[port_count].first;
        polled[port_count] = (struct pollfd){.fd = ports[port_count].fd, .events = POLLIN};
    }
    for (;;) {
        int64_t now = now_ns(), next = give(now), left = next > now ? next - now : 0;
        struct timespec wait = {left / 1000000000, left % 1000000000};
        if (ppoll(polled, port_count, next ? &wait : NULL, NULL) < 0 && errno != EINTR) fail("ppoll");
        for (int i = 0; i < port_count; i++)
            if (polled[i].revents) take(i);
    }
}
