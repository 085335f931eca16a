/**
 * What the admin API answers (lb/admin/views.py), for editors and type checkers; not part of the page.
 *
 * @typedef {{result: string, detail: string, at: number, seconds: number}} LastCheck
 *
 * @typedef {"ready" | "drain" | "maint"} AdminState
 *
 * @typedef {object} Server
 * @property {string} name
 * @property {string} pool
 * @property {string} address
 * @property {string[]} addresses
 * @property {"up" | "unchecked" | "down" | "ejected" | "starting" | "drain" | "maint"} state
 * @property {AdminState} admin
 * @property {string} health
 * @property {string} why
 * @property {number} since
 * @property {number} ejected_until
 * @property {number} weight
 * @property {number} effective_weight
 * @property {boolean} backup
 * @property {number | null} max_connections
 * @property {number} active
 * @property {number} tunnels
 * @property {number} connections
 * @property {number} idle
 * @property {number} requests
 * @property {number} errors
 * @property {number} retries
 * @property {LastCheck | null} last_check
 * @property {Record<string, number>} tunnels_by_worker
 * @property {number} empty_by
 *
 * @typedef {object} Pool
 * @property {string} name
 * @property {string} balance
 * @property {Server[]} servers
 * @property {number} usable
 * @property {boolean} panic
 * @property {number} queued
 * @property {number} retries
 * @property {string[]} routes
 * @property {Admission | null} admission
 *
 * @typedef {{rate: number, burst: number, queue: number, waiting: number, admitted: number, refused: number}} Admission
 *
 * @typedef {object} Route
 * @property {string} name
 * @property {string | null} host
 * @property {string | null} path
 * @property {string} pool
 * @property {number} in_flight
 * @property {number} requests
 * @property {number} tunnels
 * @property {number} client_bytes
 * @property {number} server_bytes
 * @property {number} client_messages
 * @property {number} server_messages
 * @property {number} errors
 *
 * @typedef {{name: string, hosts: string[], not_after: number}} Certificate
 *
 * @typedef {object} Listener
 * @property {string} name
 * @property {string[]} bind
 * @property {boolean} tls
 * @property {number} connections
 * @property {number} accepted
 * @property {number} rejected
 * @property {Record<string, number>} rejected_by_reason
 * @property {Certificate[]} certificates
 *
 * @typedef {object} Worker
 * @property {number} slot
 * @property {number} pid
 * @property {string} state
 * @property {number} uptime
 * @property {number} generation
 * @property {number} connections
 * @property {number} tunnels
 * @property {number} crash_safe
 * @property {number} movable
 * @property {number} closing
 * @property {number} keeper_pid
 * @property {number} requests
 * @property {number} loop_lag
 * @property {boolean} wedged
 * @property {number} cpu_seconds
 * @property {number} memory_bytes
 *
 * @typedef {{ok: boolean, generation: number, changes: string[], error: string, seconds: number, at: number}} Reload
 *
 * @typedef {object} Status
 * @property {string} version
 * @property {number} pid
 * @property {string} config
 * @property {string} state
 * @property {boolean} ready
 * @property {string[]} problems
 * @property {number} time
 * @property {number} uptime
 * @property {number} generation
 * @property {number} workers_wanted
 * @property {Reload | null} last_reload
 * @property {Record<string, number>} restarts
 * @property {Record<string, number>} keeper_restarts
 * @property {Record<string, Record<string, number>>} migrations
 * @property {Worker[]} workers
 * @property {Listener[]} listeners
 * @property {Route[]} routes
 * @property {Pool[]} pools
 * @property {number} control_pid
 *
 * @typedef {object} Tunnel
 * @property {string} id
 * @property {number} worker
 * @property {string} route
 * @property {string} pool
 * @property {string} server
 * @property {string} client
 * @property {string} host
 * @property {string} path
 * @property {number} age
 * @property {number} idle
 * @property {number} client_bytes
 * @property {number} server_bytes
 * @property {number} client_messages
 * @property {number} server_messages
 * @property {boolean} tls
 * @property {boolean} crash_safe
 *
 * @typedef {{tunnels: Tunnel[], total: number, cursor: string, missing: number[]}} TunnelPage
 * @typedef {{count: number, missing: number[]}} Closed
 * @typedef {{path: string, generation: number, text: string}} Configuration
 * @typedef {{id: number, kind: string, text: string, at: number, fields: Record<string, string | number>}} Happening
 */

export {};
