# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: SIM905
"""The tables have a line for everything that kube-proxy 1.37 and CoreDNS 1.14.7 can be told, so that none is silent."""

import pytest

from svcproxy.config import Config, dump
from svcproxy.migrate import corefile_plugins
from svcproxy.migrate.corefile_plugins import NODE_CACHE_FLAGS, OPTIONS, PLUGINS, Option, Plugin, Rule
from svcproxy.migrate.draft import Treatment
from svcproxy.migrate.kube_proxy_fields import FIELDS, FLAGS, SECTIONS

KUBE_PROXY_CONFIGURATION = """
apiVersion kind featureGates
clientConnection.kubeconfig clientConnection.acceptContentTypes clientConnection.contentType clientConnection.qps
clientConnection.burst
logging.format logging.flushFrequency logging.verbosity logging.vmodule
logging.options.text.splitStream logging.options.text.infoBufferSize
logging.options.json.splitStream logging.options.json.infoBufferSize
hostnameOverride bindAddress healthzBindAddress metricsBindAddress bindAddressHardFail enableProfiling
showHiddenMetricsForVersion mode
iptables.masqueradeBit iptables.masqueradeAll iptables.localhostNodePorts iptables.syncPeriod iptables.minSyncPeriod
ipvs.syncPeriod ipvs.minSyncPeriod ipvs.scheduler ipvs.excludeCIDRs ipvs.strictARP ipvs.tcpTimeout ipvs.tcpFinTimeout
ipvs.udpTimeout
nftables.masqueradeBit nftables.masqueradeAll nftables.syncPeriod nftables.minSyncPeriod
winkernel.networkName winkernel.sourceVip winkernel.enableDSR winkernel.rootHnsEndpointName
winkernel.forwardHealthCheckVip
detectLocalMode detectLocal.bridgeInterface detectLocal.interfaceNamePrefix clusterCIDR nodePortAddresses oomScoreAdj
conntrack.maxPerCore conntrack.min conntrack.tcpEstablishedTimeout conntrack.tcpCloseWaitTimeout conntrack.tcpBeLiberal
conntrack.udpTimeout conntrack.udpStreamTimeout
configSyncPeriod portRange windowsRunAsService
""".split()
"""k8s.io/kube-proxy v0.37.2 `config/v1alpha1/types.go`, with k8s.io/component-base `config/v1alpha1`, `logs/api/v1`."""

KUBE_PROXY_FLAGS = """
config write-config-to cleanup feature-gates kubeconfig master kube-api-content-type kube-api-burst kube-api-qps
hostname-override bind-address healthz-bind-address metrics-bind-address bind-address-hard-fail profiling
show-hidden-metrics-for-version init-only proxy-mode iptables-masquerade-bit masquerade-all
iptables-localhost-nodeports iptables-sync-period iptables-min-sync-period ipvs-sync-period ipvs-min-sync-period
ipvs-scheduler ipvs-exclude-cidrs ipvs-strict-arp ipvs-tcp-timeout ipvs-tcpfin-timeout ipvs-udp-timeout
detect-local-mode pod-bridge-interface pod-interface-name-prefix cluster-cidr nodeport-addresses oom-score-adj
conntrack-max-per-core conntrack-min conntrack-tcp-timeout-established conntrack-tcp-timeout-close-wait
conntrack-tcp-be-liberal conntrack-udp-timeout conntrack-udp-timeout-stream config-sync-period healthz-port metrics-port
v vmodule logging-format log-flush-frequency log-text-split-stream log-text-info-buffer-size log-json-split-stream
log-json-info-buffer-size version help
""".split()
"""Kubernetes v1.37.2 `cmd/kube-proxy/app/options.go`, on Linux, with those of component-base."""

PLUGIN_CFG = """
root metadata geoip cancel proxyproto quic grpc_server https https3 timeouts multisocket reload nsid bufsize bind debug
trace ready health pprof shed prometheus errors log dnstap local dns64 any chaos loadbalance tsig rewrite autopath acl
cache header dnssec tls minimal template transfer hosts route53 azure clouddns k8s_external kubernetes file auto
secondary etcd loop forward grpc erratic whoami on sign view nomad
""".split()
"""coredns v1.14.7 `plugin.cfg`, in its order."""

PLUGIN_OPTIONS = {
    "kubernetes": """
    endpoint_pod_names pods namespaces endpoint tls labels namespace_labels fallthrough ttl noendpoints zonal ignore
    kubeconfig multicluster startup_timeout apiserver_qps apiserver_burst apiserver_max_inflight
    """.split(),
    "forward": """
    except max_fails max_connect_attempts health_check force_tcp prefer_udp tls tls_servername expire max_age
    max_idle_conns read_timeout doh_method policy max_concurrent next next_on_nodata failfast_all_unhealthy_upstreams
    failover resolver source_address
    """.split(),
    "cache": "success denial prefetch serve_stale serve_stale_policy servfail disable keepttl".split(),
}
"""coredns v1.14.7, `setup.go` of each."""


def test_every_field_of_kube_proxy_has_a_line() -> None:
    assert sorted(field.path for field in FIELDS) == sorted(KUBE_PROXY_CONFIGURATION)
    assert {path.rpartition(".")[0] for path in KUBE_PROXY_CONFIGURATION} <= SECTIONS


def test_every_flag_of_kube_proxy_has_a_line() -> None:
    assert sorted(flag.name for flag in FLAGS) == sorted(KUBE_PROXY_FLAGS)
    fields = {field.path for field in FIELDS}
    assert all(flag.path in fields for flag in FLAGS if flag.path)


def test_every_plugin_of_coredns_has_a_line() -> None:
    assert [plugin.name for plugin in PLUGINS] == PLUGIN_CFG
    assert {plugin.rule for plugin in PLUGINS if plugin.rule is not None} == set(Rule)


@pytest.mark.parametrize("plugin", PLUGIN_OPTIONS)
def test_every_option_of_a_plugin_that_is_carried_over_has_a_line(plugin: str) -> None:
    assert sorted(option.name for option in OPTIONS[plugin]) == sorted(PLUGIN_OPTIONS[plugin])


def keys() -> list[str]:
    options = [option.key for each in OPTIONS.values() for option in each]
    return [key for key in [*options, *(field.key for field in FIELDS)] if key]


@pytest.mark.parametrize("key", keys())
def test_keys_of_the_tables_are_keys_of_the_configuration(key: str) -> None:
    at = dump(Config())
    for step in key.split("."):
        at = at[step]


def test_whatever_has_no_equivalent_says_so() -> None:
    lines: list[Plugin | Option | corefile_plugins.CacheFlag] = [*PLUGINS, *NODE_CACHE_FLAGS]
    lines += [option for each in OPTIONS.values() for option in each]
    silent = {each.name for each in lines if each.treatment is not Treatment.SAME and not each.text}
    assert silent == {"bind", "fallthrough", "serve_stale"}, "which say what is different case by case"
    fields = [field for field in FIELDS if field.treatment is not Treatment.SAME and not field.text]
    assert all(field.rule is not None for field in fields)
