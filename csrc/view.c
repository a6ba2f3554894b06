// SPDX-License-Identifier: Apache-2.0
/*
 * What is shown of a group to whoever asks why its container is awake. Nothing here is asked for
 * unless somebody looks.
 */
#include <arpa/inet.h>
#include <string.h>

#include "internal.h"

/* zp_group_stats() - what has been counted. Return: 0 or -errno. */
int zp_group_stats(struct zp_activator *activator, int number, struct zp_group_stats *ret_stats)
{
	struct zp_group *group = zp_group_lock(activator, number);

	if (!group)
		return -ENOENT;
	*ret_stats = group->stats;
	ret_stats->held = zp_group_waiting(group);
	pthread_mutex_unlock(&activator->lock);
	return 0;
}

static bool is_unread(const struct zp_group *group, const struct zp_port *port)
{
	const struct zp_flow *flow = &group->unread_flow;

	return group->unread != ZP_UNREAD_NO && flow->remote_port_be == port->remote_port_be &&
	       memcmp(flow->remote, port->remote, sizeof(port->remote)) == 0;
}

static void view(struct zp_port_entry *entry, struct zp_port_view *ret_view)
{
	struct zp_group *group = entry->group;
	struct zp_port port = *entry->shared;

	*ret_view = (struct zp_port_view){
		.last_activity_ns = port.last_activity_ns,
		.remote_port = ntohs(port.remote_port_be),
		.number = entry->port,
		.protocol = entry->protocol,
		.mode = port.mode,
		.of_node = zp_redirector_is_of_node(&group->activator->redirector, port.remote),
		.unread = is_unread(group, &port) ? group->unread : ZP_UNREAD_NO,
	};
	memcpy(ret_view->remote, port.remote, sizeof(ret_view->remote));
}

/*
 * zp_group_view() - its ports as they are now
 * @views: room for ZP_MAX_PORTS
 *
 * Return: 0 or -errno.
 */
int zp_group_view(struct zp_activator *activator, int number, struct zp_port_view *views,
		  size_t *ret_count)
{
	struct zp_group *group = zp_group_lock(activator, number);
	size_t i;

	if (!group)
		return -ENOENT;
	if (group->removed) { /* its ports are others' by now */
		pthread_mutex_unlock(&activator->lock);
		return -ENOENT;
	}
	zp_redirector_read_parked(&activator->redirector); /* it may be asked of somebody */
	zp_kick(activator);				   /* or have somebody to wait for */
	for (i = 0; i < group->port_count; i++)
		view(&group->ports[i], &views[i]);
	*ret_count = group->port_count;
	pthread_mutex_unlock(&activator->lock);
	return 0;
}
