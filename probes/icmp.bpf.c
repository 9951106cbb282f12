// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * The node refuses a packet with an ICMP error (IPv4): REJECT, no route, fragmentation needed, port unreachable. The
 * event shows the packet that is refused, with the error's type and code; the error itself is seen on its own way back.
 */
#include "emit.h"

SEC("tp_btf/icmp_send")
int BPF_PROG(icmp_send, const struct sk_buff *skb, int type, int code)
{
	struct event *e = event_for_skb(PROBE_ICMP_SEND, skb, network_header(skb));

	if (!e)
		return 0;
	e->icmp_type = type;
	e->icmp_code = code;
	submit(e);
	return 0;
}
