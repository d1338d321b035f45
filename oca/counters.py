"""What a server counts: plain integers, so that recording costs nothing, added up and rendered when scraped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

# name, type and help of every metric, in the order of the page; a test compares it with what is rendered
METRICS = {
    "oca_connections_open": ("gauge", "connections open now"),
    "oca_connections_total": ("counter", "connections accepted"),
    "oca_connections_closed_total": ("counter", "connections ended, by reason"),
    "oca_refusals_total": ("counter", "connections and requests answered 503 because of a limit, by reason"),
    "oca_in_flight_bytes": ("gauge", "bytes of answers that are begun and wait for their readers"),
    "oca_responses_total": ("counter", "responses begun, by status"),
    "oca_content_requests_total": ("counter", "GET requests for content, by outcome (hit or miss)"),
    "oca_sent_bytes_total": (
        "counter",
        "bytes given to the kernel: body bytes by sendfile, body bytes encrypted here first, other bytes copied",
    ),
    "oca_tls_connections_total": (
        "counter",
        "TLS handshakes done, by version, who encrypts (user or kernel), and whether a session was resumed",
    ),
    "oca_certificate_expiry_seconds": ("gauge", "until when a certificate is valid, in seconds since the epoch"),
    "oca_cold_reads_total": ("counter", "windows of content that were not in memory and were read ahead from a disk"),
    "oca_cold_read_bytes_total": ("counter", "bytes of these windows"),
    "oca_cold_sends_total": (
        "counter",
        "of these windows, those that had left memory again before they were sent: memory is too short",
    ),
    "oca_waiting_answers": ("gauge", "answers that wait for content from another box"),
    "oca_pulls_total": ("counter", "chunks pulled from other boxes, by outcome: kept, failed, or wrong bytes"),
    "oca_pulled_bytes_total": ("counter", "bytes received for these chunks, before verification"),
    "oca_pulled_bytes": ("gauge", "bytes of pulled content on the disk"),
    "oca_upstream_requests_total": ("counter", "requests to other boxes for content, by box and outcome"),
    "oca_upstream_error_percent": ("gauge", "failures among the requests to a box in the circuit breaker's window"),
    "oca_circuits": ("gauge", "circuit breakers of other boxes, by state"),
    "oca_circuit_changes_total": ("counter", "times that a circuit breaker opened, half-opened or closed"),
    "oca_workers": ("gauge", "worker processes that serve"),
    "oca_worker_deaths_total": ("counter", "workers that ended unasked and were replaced"),
    "oca_store_bytes": ("gauge", "bytes of content in the store, and the most it may hold"),
    "oca_disk_up": ("gauge", "whether a disk of the store works (1) or has failed (0)"),
    "oca_damaged_files": ("gauge", "files found damaged in the last 30 days, mended or not"),
    "oca_store_generation_changes_total": ("counter", "times that the content of the store was seen to change"),
}


class Counters(msgspec.Struct):
    """All counters of one worker, or of several added up."""

    accepted: int = 0
    open: int = 0
    in_flight: int = 0
    sendfile_bytes: int = 0
    encrypted_bytes: int = 0
    copied_bytes: int = 0
    hits: int = 0
    misses: int = 0
    cold_reads: int = 0
    cold_bytes: int = 0
    cold_sends: int = 0
    store_changes: int = 0
    waiting: int = 0
    pulled_bytes: int = 0
    pulled_held: int = 0
    statuses: dict[int, int] = {}
    closed: dict[str, int] = {}
    refused: dict[str, int] = {}
    pulls: dict[str, int] = {}
    upstreams: dict[str, int] = {}
    circuits: dict[str, int] = {}
    circuit_changes: dict[str, int] = {}
    tls: dict[str, int] = {}
    error_percent: dict[str, int] = {}

    @property
    def sent_bytes(self) -> int:
        """All bytes given to the kernel."""
        return self.sendfile_bytes + self.encrypted_bytes + self.copied_bytes

    def body(self, count: int, direct: bool) -> None:
        """Count bytes of a file; `direct`: they never entered this process."""
        if direct:
            self.sendfile_bytes += count
        else:
            self.encrypted_bytes += count

    def hit(self, head: int, body: int, direct: bool) -> None:
        """Count a whole 200 with content: bytes of its head, and of a file, see `body`."""
        self.hits += 1
        self.copied_bytes += head
        if direct:
            self.sendfile_bytes += body
        else:
            self.encrypted_bytes += body
        self.statuses[200] = self.statuses.get(200, 0) + 1

    def secured(self, version: str, way: str, resumed: bool) -> None:
        """Count a TLS handshake."""
        key = f"{version} {way} {'yes' if resumed else 'no'}"
        self.tls[key] = self.tls.get(key, 0) + 1

    def status(self, code: int) -> None:
        """Count a response."""
        self.statuses[code] = self.statuses.get(code, 0) + 1

    def ended(self, reason: str) -> None:
        """Count the end of a connection."""
        self.closed[reason] = self.closed.get(reason, 0) + 1

    def refuse(self, what: str, reason: str) -> None:
        """Count a refusal because of a limit; `what` is "connection" or "request"."""
        key = f"{what} {reason}"
        self.refused[key] = self.refused.get(key, 0) + 1

    def upstream(self, appliance: str, outcome: str) -> None:
        """Count a request to another box."""
        key = f"{appliance} {outcome}"
        self.upstreams[key] = self.upstreams.get(key, 0) + 1

    def pull(self, outcome: str) -> None:
        """Count the end of a pull."""
        self.pulls[outcome] = self.pulls.get(outcome, 0) + 1

    def end(self) -> None:
        """The process has ended: what it had open, waiting or held is no more."""
        self.open = self.in_flight = self.waiting = self.pulled_held = 0
        self.circuits, self.error_percent = {}, {}


def total(parts: Iterable[Counters]) -> Counters:
    """The sum of several workers' counters."""
    whole = Counters()
    for part in parts:
        for name in part.__struct_fields__:
            value, more = getattr(whole, name), getattr(part, name)
            if isinstance(value, dict):
                for key, count in more.items():
                    value[key] = value.get(key, 0) + count
            else:
                setattr(whole, name, value + more)
    return whole


def render(
    counters: Counters,
    used_bytes: int,
    storage_bytes: int,
    workers: int,
    deaths: int,
    disks: Mapping[str, bool] | None = None,
    certificates: Mapping[str, float] | None = None,
    damaged: int = 0,
) -> str:
    """The metrics page in the Prometheus text format, version 0.0.4.

    `disks` by path, whether they work; `certificates` by path, until when they are valid; `damaged` files of late.
    """
    samples: dict[str, list[tuple[str, int]]] = {
        "oca_connections_open": [("", counters.open)],
        "oca_connections_total": [("", counters.accepted)],
        "oca_connections_closed_total": [(f'{{reason="{r}"}}', n) for r, n in sorted(counters.closed.items())],
        "oca_refusals_total": [
            ('{{of="{}",reason="{}"}}'.format(*key.split(" ")), n) for key, n in sorted(counters.refused.items())
        ],
        "oca_in_flight_bytes": [("", counters.in_flight)],
        "oca_responses_total": [(f'{{status="{s}"}}', n) for s, n in sorted(counters.statuses.items())],
        "oca_content_requests_total": [
            ('{outcome="hit"}', counters.hits),
            ('{outcome="miss"}', counters.misses),
        ],
        "oca_sent_bytes_total": [
            ('{way="sendfile"}', counters.sendfile_bytes),
            ('{way="encrypt"}', counters.encrypted_bytes),
            ('{way="copy"}', counters.copied_bytes),
        ],
        "oca_tls_connections_total": [
            ('{{version="{}",way="{}",resumed="{}"}}'.format(*key.split(" ")), n)
            for key, n in sorted(counters.tls.items())
        ],
        "oca_certificate_expiry_seconds": [
            (f'{{file="{_escaped(path)}"}}', int(until)) for path, until in (certificates or {}).items()
        ],
        "oca_cold_reads_total": [("", counters.cold_reads)],
        "oca_cold_read_bytes_total": [("", counters.cold_bytes)],
        "oca_cold_sends_total": [("", counters.cold_sends)],
        "oca_waiting_answers": [("", counters.waiting)],
        "oca_pulls_total": [(f'{{outcome="{o}"}}', n) for o, n in sorted(counters.pulls.items())],
        "oca_pulled_bytes_total": [("", counters.pulled_bytes)],
        "oca_pulled_bytes": [("", counters.pulled_held)],
        "oca_upstream_requests_total": [
            ('{{upstream="{}",outcome="{}"}}'.format(*key.split(" ")), n)
            for key, n in sorted(counters.upstreams.items())
        ],
        "oca_upstream_error_percent": [
            (f'{{upstream="{box}"}}', percent) for box, percent in sorted(counters.error_percent.items())
        ],
        "oca_circuits": [(f'{{state="{s}"}}', n) for s, n in sorted(counters.circuits.items())],
        "oca_circuit_changes_total": [(f'{{to="{to}"}}', n) for to, n in sorted(counters.circuit_changes.items())],
        "oca_workers": [("", workers)],
        "oca_worker_deaths_total": [("", deaths)],
        "oca_store_bytes": [('{kind="used"}', used_bytes), ('{kind="limit"}', storage_bytes)],
        "oca_disk_up": [(f'{{disk="{_escaped(path)}"}}', int(up)) for path, up in (disks or {}).items()],
        "oca_damaged_files": [("", damaged)],
        "oca_store_generation_changes_total": [("", counters.store_changes)],
    }
    lines = []
    for name, (kind, words) in METRICS.items():
        lines += [f"# HELP {name} {words}", f"# TYPE {name} {kind}"]
        lines += [f"{name}{labels} {value}" for labels, value in samples[name]]
    return "\n".join(lines) + "\n"


def _escaped(value: str) -> str:
    """A label's value."""
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
