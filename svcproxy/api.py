# SPDX-License-Identifier: Apache-2.0
"""What the status API answers, as types that its server and its clients share. Pure.

Version 1 of the API: a field may be added, and never changes its meaning or goes away. Keys are in camel case, as in
the Kubernetes API. Durations are seconds; times are RFC 3339 in UTC; addresses are in canonical text form. Every list
is either bounded by what it describes or paged, and says so. `docs/reference/api.md` is checked against this module.
"""

import msgspec


class Answer(msgspec.Struct, frozen=True, rename="camel"):
    """Base of everything the API answers."""


class Failure(Answer, frozen=True, rename="camel"):
    """The body of every answer with a status of 400 or more."""

    status: int
    """The HTTP status again."""
    message: str
    """For people: what is wrong, and with what."""


class Readiness(Answer, frozen=True, rename="camel"):
    """The body of `/readyz`: whether this instance serves, and whether what it serves is fresh."""

    ready: bool
    """Holds the node and has programmed everything once."""
    stale: bool
    """Serves something that may be out of date: a saved snapshot, or a source that is silent."""
    waiting: bool
    """Another instance holds the node; this one takes over when that one ends."""
    reasons: tuple[str, ...] = ()
    """Why it is not ready or stale, for people."""


class Source(Answer, frozen=True, rename="camel"):
    """How well one kind of object is followed."""

    kind: str
    synced: bool
    """Whether a complete list has arrived since start."""
    server: str
    """URL of the API server in use, or path of the manifests."""
    contact_age: float | None
    """Seconds since the last octet arrived; null before the first."""
    resource_version: str
    error: str
    """Why the kind is not being followed right now; empty while it is."""
    optional: bool = False
    """Whether everything works without the kind: nobody waits for it, and readiness does not count it."""


class RefusedFrontend(Answer, frozen=True, rename="camel"):
    """A frontend that the data plane could not put in force."""

    frontend: str
    service: str
    """`namespace/name`, empty if the frontend has gone meanwhile."""
    reason: str


class AddressConflict(Answer, frozen=True, rename="camel"):
    """An address that several Services claim; the winner alone is served on it."""

    frontend: str
    winner: str
    losers: tuple[str, ...]


class ServiceProblem(Answer, frozen=True, rename="camel"):
    """What had to be left out of a Service and its slices."""

    service: str
    messages: tuple[str, ...]


class InvalidObject(Answer, frozen=True, rename="camel"):
    """An object that was left out; its last good version stays in force."""

    kind: str
    name: str
    reason: str
    age: float
    """Seconds since it was seen last."""
    count: int
    """How often it was seen."""


class Worker(Answer, frozen=True, rename="camel"):
    """A process that follows the agent's feed."""

    name: str
    revision: int
    """The newest revision that it has acknowledged."""
    lag: int
    """Revisions between that and the agent's."""
    ack_age: float | None
    """Seconds since its last acknowledgement; null before the first."""


class Role(Answer, frozen=True, rename="camel"):
    """A process that the supervisor keeps."""

    name: str
    state: str
    """`running`, `backoff`, `stopping`, …"""
    pid: int | None
    restarts: int
    crash_loop: bool
    """Ended again and again soon after its start."""
    detail: str = ""
    """How it ended last, empty if it never did."""


class Latency(Answer, frozen=True, rename="camel"):
    """Time from the octets of an API event to a stage."""

    stage: str
    """`frontends`, `dataplane`, or `ack NAME` for each worker."""
    count: int
    """All changes since start; the quantiles are those of the newest few thousand."""
    p50: float
    p99: float
    last: float


class Counts(Answer, frozen=True, rename="camel"):
    """How much there is."""

    services: int = 0
    endpoint_slices: int = 0
    namespaces: int = 0
    frontends: int = 0
    backends: int = 0
    """(address, port) pairs over all backend sets of cluster scope."""
    health_checks: int = 0


class Listener(Answer, frozen=True, rename="camel"):
    """An address that the agent serves HTTP on."""

    name: str
    address: str
    error: str
    """Why it is not being served; empty while it is. It is tried again every few seconds."""


class Probe(Answer, frozen=True, rename="camel"):
    """One feature of the kernel, tried out."""

    name: str
    ok: bool
    detail: str
    """What the feature is for; if it does not work, the kernel's error."""
    fallback: str
    """What is done without it; empty while it works."""


class Setting(Answer, frozen=True, rename="camel"):
    """A parameter of the kernel that the agent sets."""

    name: str
    wanted: int
    before: int | None
    """null where it could not be read."""
    after: int | None
    error: str
    """Why it is not as wanted; empty if it is."""


class Foreign(Answer, frozen=True, rename="camel"):
    """Another implementation of Services that is, or was, at work on this node."""

    implementation: str
    evidence: tuple[str, ...]
    """What was found, for people to look at."""
    alive: bool | None
    """Whether it runs; null where that cannot be found out."""
    removable: bool
    """Whether `svcproxy cleanup --kube-proxy` removes what it left."""


class Status(Answer, frozen=True, rename="camel"):
    """`/v1/status`. Lists are bounded; a `…Count` beside one is the whole number."""

    version: str
    instance: str
    pid: int
    node: str
    started: str
    uptime: float
    readiness: Readiness
    sources: tuple[Source, ...]
    counts: Counts
    dataplane: str
    """The data plane in use."""
    probes: tuple[Probe, ...]
    """What the kernel can do; empty where no data plane there was asked for."""
    settings: tuple[Setting, ...]
    """Parameters of the kernel that the agent sets."""
    others: tuple[Foreign, ...]
    """Other implementations of Services, as seen when the data plane was opened."""
    refused: tuple[RefusedFrontend, ...]
    refused_count: int
    compromised: tuple[RefusedFrontend, ...]
    """Frontends in force, but otherwise than asked for."""
    compromised_count: int
    conflicts: tuple[AddressConflict, ...]
    conflicts_count: int
    problems: tuple[ServiceProblem, ...]
    problems_count: int
    invalid: tuple[InvalidObject, ...]
    """Newest first."""
    invalid_count: int
    config_errors: tuple[str, ...]
    """Why the newest configuration is not in force; empty while it is."""
    revision: int
    """The feed's."""
    workers: tuple[Worker, ...]
    roles: tuple[Role, ...]
    """Empty where no supervisor of ours runs."""
    latencies: tuple[Latency, ...]
    listeners: tuple[Listener, ...]


class ServiceSummary(Answer, frozen=True, rename="camel"):
    """One line of `/v1/services`."""

    namespace: str
    name: str
    type: str
    cluster_ips: tuple[str, ...] = msgspec.field(name="clusterIPs")
    """`None` for a headless Service."""
    external: tuple[str, ...]
    """External and load-balancer addresses, or the external name."""
    ports: tuple[str, ...]
    """As kubectl writes them: `80/TCP`, `80:30080/TCP`."""
    age: float | None
    """Seconds since its creation; null where the object does not say."""
    ready: int
    """Endpoints that are ready."""
    endpoints: int


class EndpointDetail(Answer, frozen=True, rename="camel"):
    """One endpoint of an EndpointSlice."""

    address: str
    ports: tuple[str, ...]
    """`8080/TCP`, with the port's name before it where it has one: `http:8080/TCP`."""
    ready: bool
    serving: bool
    terminating: bool
    node: str
    zones: tuple[str, ...]
    """Zones that topology hints name."""
    pod: str
    slice: str


class FrontendDetail(Answer, frozen=True, rename="camel"):
    """One line of `/v1/frontends`."""

    frontend: str
    kind: str
    service: str
    port: str
    """Name of the Service port, empty if it has none."""
    policy: str
    backends: tuple[str, ...]
    """At most 100 of those that new connections go to."""
    backends_count: int
    when_empty: str
    """What a packet meets without a backend: `reject` or `drop`."""
    affinity_timeout: int | None
    source_ranges: tuple[str, ...] | None
    refused: str
    """Why it is not in force; empty if it is."""


class ServiceDetail(Answer, frozen=True, rename="camel"):
    """`/v1/services/{namespace}/{name}`."""

    summary: ServiceSummary
    frontends: tuple[FrontendDetail, ...]
    endpoints: tuple[EndpointDetail, ...]


class EndpointsSummary(Answer, frozen=True, rename="camel"):
    """One line of `/v1/endpoints`: the endpoints of all slices of a Service."""

    namespace: str
    name: str
    """The Service's name."""
    endpoints: tuple[EndpointDetail, ...]
    """At most 1000."""
    endpoints_count: int


class ServicePage(Answer, frozen=True, rename="camel"):
    """`/v1/services`, in the order of namespace and name."""

    items: tuple[ServiceSummary, ...]
    next: str = msgspec.field(default="", name="continue")
    """Ask for the next page with `continue=` this; empty on the last."""


class EndpointsPage(Answer, frozen=True, rename="camel"):
    """`/v1/endpoints`, in the order of namespace and name."""

    items: tuple[EndpointsSummary, ...]
    next: str = msgspec.field(default="", name="continue")


class FrontendPage(Answer, frozen=True, rename="camel"):
    """`/v1/frontends`, in the order of their text form."""

    items: tuple[FrontendDetail, ...]
    next: str = msgspec.field(default="", name="continue")


class TraceStep(Answer, frozen=True, rename="camel"):
    """One decision about a connection."""

    stage: str
    """`frontend`, `service`, `source`, `policy`, `backends` or `verdict`."""
    text: str


class TracedEndpoint(Answer, frozen=True, rename="camel"):
    """One endpoint of the Service port, and why connections go to it or not."""

    backend: str
    selected: bool
    reason: str
    node: str | None
    slice: str


class KernelView(Answer, frozen=True, rename="camel"):
    """What the kernel's tables hold for a connection, read when asked."""

    verdict: str
    """As in Trace."""
    path: tuple[str, ...]
    """Look-ups and what they gave."""
    backends: tuple[str, ...]
    """At most 256."""
    agrees: bool
    """Whether that is what the agent wants there."""
    difference: str
    """In what it differs; empty if it agrees."""


class Trace(Answer, frozen=True, rename="camel"):
    """`/v1/trace`: what this node does with a new connection, step by step."""

    destination: str
    source: str | None
    """null: somebody outside."""
    source_kind: str
    """`pod`, `node` or `other`."""
    verdict: str
    """`forward`, `reject`, `drop`, `filtered` (the source is not admitted) or `not-ours` (the packet goes on)."""
    steps: tuple[TraceStep, ...]
    """In the order in which they are decided."""
    frontend: str | None
    kind: str | None
    service: str | None
    service_port: str | None
    policy: str | None
    scope: str | None
    """`cluster` or `local`: the set that serves the connection."""
    backends: tuple[str, ...]
    """Where the connection may go; at most 100."""
    backends_total: int
    endpoints: tuple[TracedEndpoint, ...]
    """Selected ones first; at most 100."""
    endpoints_total: int
    affinity_timeout: int | None
    kernel: KernelView | None = None
    """null where no data plane in the kernel serves, or it could not be asked."""


class Variable(Answer, frozen=True, rename="camel"):
    """An environment variable."""

    name: str
    value: str


class Environment(Answer, frozen=True, rename="camel"):
    """`/v1/env`: the Service variables that a Pod of a namespace gets."""

    namespace: str
    variables: tuple[Variable, ...]
    """Services in the order of their names, each with its variables in the order in which the kubelet makes them."""


class DnsUpstream(Answer, frozen=True, rename="camel"):
    """A resolver that a DNS worker asks for names outside its zones."""

    address: str
    suspect: bool
    """It has left the last query unanswered, and is asked last."""
    looping: bool
    """It sends questions back to this server, and is not asked."""
    unanswered: int
    """Queries that it has left unanswered."""


class DnsStatus(Answer, frozen=True, rename="camel"):
    """`/v1/status` of a DNS worker."""

    name: str
    """`dns-0`, as in the feed."""
    version: str
    instance: str
    pid: int
    uptime: float
    readiness: Readiness
    listen: tuple[str, ...]
    """What it answers on now: `udp/127.0.0.1:53`."""
    zones: tuple[str, ...]
    feed: str
    """`live`, or what else the conversation with the agent is at."""
    feed_error: str
    """Why there is no connection to an agent; empty while there is one."""
    revision: int
    """Of the feed, taken in."""
    namespaces: int
    services: int
    endpoints: int
    queries: int
    """Answered since start."""
    failures: int
    """Of these, SERVFAIL."""
    cached: int
    """Responses of upstreams that are kept."""
    upstreams: tuple[DnsUpstream, ...]
    """Bounded by the configuration."""
    config_errors: tuple[str, ...]


class Explanation(Answer, frozen=True, rename="camel"):
    """`/v1/resolve` of a DNS worker: what it would answer, and why. Nothing is asked of anybody."""

    worker: str
    revision: int
    """Of the feed, taken in."""
    name: str
    type: str
    origin: str
    """`zone`, `cache`, `upstreams` or `refused`."""
    rcode: str
    """Empty if upstreams decide."""
    steps: tuple[TraceStep, ...]
    """In the order in which they are decided; stages are `zone`, `name`, `alias`, `type`, `answer`, `cache` and
    `upstreams`."""
    service: str | None
    """`namespace/name` of the Service that the name is about, whether it exists or not."""
    upstreams: tuple[DnsUpstream, ...]
    """Whom to ask."""
