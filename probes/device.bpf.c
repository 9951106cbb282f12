// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Every device of every netns, in and out: the packet's way. net_dev_queue is egress, before the qdisc, with conntrack's
 * entry still on the skb; netif_receive_skb is ingress, and there skb->network_header is still the sender's, so the
 * IP header is taken at skb->data. net_dev_xmit speaks only when a driver refused: the skb may be freed by then.
 */
#include "emit.h"

SEC("tp_btf/net_dev_queue")
int BPF_PROG(net_dev_queue, struct sk_buff *skb)
{
	struct event *e = event_for_skb(PROBE_NET_DEV_QUEUE, skb, network_header(skb));

	if (e)
		submit(e);
	return 0;
}

SEC("tp_btf/netif_receive_skb")
int BPF_PROG(netif_receive_skb, struct sk_buff *skb)
{
	struct event *e = event_for_skb(PROBE_NETIF_RECEIVE_SKB, skb, (__u64)skb->data);

	if (e)
		submit(e);
	return 0;
}

SEC("tp_btf/net_dev_xmit")
int BPF_PROG(net_dev_xmit, struct sk_buff *skb, int rc, struct net_device *dev, unsigned int len)
{
	struct event *e;

	if (!rc)
		return 0;
	e = event_for(PROBE_NET_DEV_XMIT, NULL);
	if (!e)
		return 0;
	e->skb = (__u64)skb;
	e->len = len;
	e->code = rc;
	fill_device(e, UNTRUSTED(struct net_device, dev));
	submit(e);
	return 0;
}
