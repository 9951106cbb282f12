// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * The routing decision (IPv4). The only evidence when there is no packet at all: connect() in a pod without a default
 * route. On an error there is no next hop, hence no device and no netns. Ports in the flow key are often 0, so the filter
 * looks at addresses only. Not attached by default: it runs two or three times for every packet that is forwarded.
 */
#include "emit.h"

SEC("tp_btf/fib_table_lookup")
int BPF_PROG(fib_table_lookup, __u32 table, const struct flowi4 *flow, const struct fib_nh_common *nexthop, int err)
{
	__u32 saddr = flow->saddr, daddr = flow->daddr;
	struct tuple t __attribute__((aligned(8))) = {};
	struct event *e;

	if (!has_client4(saddr, daddr))
		return 0;
	*(__u32 *)t.saddr = saddr;
	*(__u32 *)t.daddr = daddr;
	t.protocol = flow->__fl_common.flowic_proto;
	t.family = AF_INET;
	if (!addresses_match(&t))
		return 0;
	e = event_for(PROBE_FIB_TABLE_LOOKUP, &t);
	if (!e)
		return 0;
	e->code = err;
	e->skb_iif = flow->__fl_common.flowic_iif;
	if (nexthop) {
		const struct net_device *dev = UNTRUSTED(struct fib_nh_common, nexthop)->nhc_dev;

		if (dev)
			fill_device(e, dev);
	}
	submit(e);
	return 0;
}
