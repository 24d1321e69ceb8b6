"""What applications and operators do to a node, each as a named action on one machine.

An operation returns whether it could be done; only then it is counted. A new one is one function and one entry in
``OPERATIONS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Final

from gossiper.core.io import AssassinateRequested, RemoveRequested, ShutdownRequested
from gossiper.simulation.cluster import Cluster
from gossiper.simulation.machine import Machine

Operation = Callable[[Cluster, Machine, Random], bool]

#: The application's keys; few, so that they are overwritten and deleted often.
KEYS: Final = tuple(f"key{number}" for number in range(8))
VALUE_LENGTHS: Final = (0, 1, 12, 40, 200)
#: More than a tick has counters for.
BURST: Final = 20


def publish(cluster: Cluster, machine: Machine, rng: Random) -> bool:
    """Set one to three keys, or delete some, once or in a burst."""
    process = machine.process
    if process is None or not process.gossips:
        return False
    times = BURST if rng.random() < cluster.swarm.burst else 1
    for _ in range(times):
        keys = rng.sample(KEYS, rng.randint(1, 3))
        deletes = rng.random() < cluster.swarm.delete
        expires = 0.0 if deletes or rng.random() < 0.9 else rng.uniform(1.0, 60.0)
        process.publish({key: None if deletes else _text(rng) for key in keys}, expires)
    return True


def _text(rng: Random) -> str:
    length = rng.choice(VALUE_LENGTHS)
    return f"{rng.getrandbits(4 * length + 1):x}"[:length] if length else ""


def purge(cluster: Cluster, machine: Machine, _rng: Random) -> bool:
    """The owner drops all of its tombstones now: the engine itself waits a day before it does."""
    process = machine.process
    if process is None or not process.gossips or process.paused:
        return False
    state = process.engine.state
    before = int(state.table.gc_version[state.local_row])
    state.collect_tombstones(int(state.table.states_version[state.local_row]))
    after = int(state.table.gc_version[state.local_row])
    if after == before:
        return False
    process.observer.own_row_changed()
    cluster.trace.line(f"purge {machine.endpoint} up to {after}")
    return True


def join(cluster: Cluster, _machine: Machine, _rng: Random) -> bool:
    """One more machine, up to the number of nodes of the run."""
    if len(cluster.machines) >= cluster.options.nodes:
        return False
    return cluster.start(cluster.add_machine())


def shut_down(cluster: Cluster, machine: Machine, rng: Random) -> bool:
    """Stop in good order; mostly to come back."""
    if machine.process is None or machine.process.stopping:
        return False
    cluster.trace.line(f"shut_down {machine.endpoint}")
    machine.process.shut_down()
    restart_later(cluster, machine, rng)
    return True


def crash(cluster: Cluster, machine: Machine, rng: Random) -> bool:
    """Die without a word; mostly to come back."""
    if machine.process is None:
        return False
    cluster.kill(machine, power_off=rng.random() < cluster.swarm.power_off)
    restart_later(cluster, machine, rng)
    return True


def restart_later(cluster: Cluster, machine: Machine, rng: Random) -> None:
    """Schedule the restart, perhaps at a new address, perhaps with a damaged disk."""
    if rng.random() < cluster.swarm.stay_down:
        return
    cluster.loop.after(rng.uniform(0.05, cluster.swarm.restart_seconds_max), restart, cluster, machine, rng)


def restart(cluster: Cluster, machine: Machine, rng: Random) -> bool:
    """Start a machine's process again, after what may have happened to it meanwhile."""
    if cluster.faults_over:  # whether it runs is decided already
        return False
    if machine.process is not None:
        if machine.process.stopping:  # its grace is not over yet
            cluster.loop.after(2.0, restart, cluster, machine, rng)
        return False
    swarm = cluster.swarm
    if rng.random() < swarm.file_lost:
        machine.disk.lose()
        cluster.faults["file_lost"] += 1
        cluster.trace.line(f"file of {machine.endpoint} lost")
    elif rng.random() < swarm.file_corrupt:
        machine.disk.corrupt = True
        cluster.faults["file_corrupt"] += 1
        cluster.trace.line(f"file of {machine.endpoint} corrupt")
    if rng.random() < swarm.new_address and not machine.is_seed:
        cluster.move(machine)
        cluster.faults["new_address"] += 1
    if cluster.start(machine):
        cluster.faults["restart"] += 1
        return True
    # It refused to start: an operator sets the corrupt file aside.
    machine.disk.restore_writes()
    cluster.try_again(machine)
    return False


def leave(cluster: Cluster, machine: Machine, _rng: Random) -> bool:
    """Leave for good. A seed stays: others are told of its address at their start."""
    if machine.process is None or not machine.process.gossips or machine.is_seed or not _may_lose_one(cluster):
        return False
    cluster.trace.line(f"leave {machine.endpoint}")
    machine.retired = True
    machine.process.leave()
    return True


def remove(cluster: Cluster, machine: Machine, rng: Random) -> bool:
    """An operator removes somebody that this node holds dead, rightly or not."""
    process = machine.process
    if process is None or not process.gossips or process.paused:
        return False
    state = process.engine.state
    rows = [row for row in state.unreachable_rows().tolist() if row != state.local_row]
    if not rows:
        return False
    victim = state.view(rows[rng.randrange(len(rows))])
    saved = state.saved.at(victim.endpoint, process.now().wall)
    host_id = victim.host_id if saved is None else saved.host_id
    if host_id is None:
        return False
    if rng.random() < 0.3:
        done = process.operate(AssassinateRequested(victim.endpoint, force=rng.random() < 0.5))
    else:
        done = process.operate(RemoveRequested(host_id))
    cluster.trace.line(f"remove {victim.endpoint} by {machine.endpoint}: {done}")
    return done


def replace(cluster: Cluster, machine: Machine, rng: Random) -> bool:
    """A new machine, or the same at its old address with an empty disk, takes the place of a dead one for good."""
    if machine.process is not None or machine.retired or machine.is_seed or not machine.incarnations:
        return False
    cluster.trace.line(f"replace {machine.endpoint}")
    if rng.random() < 0.5:
        machine.replaces = machine.endpoint
        machine.disk.renew()
        return cluster.start(machine)
    if len(cluster.machines) >= cluster.options.nodes:
        return False
    newcomer = cluster.add_machine()
    newcomer.replaces = machine.disk.host_id
    machine.retired = True
    return cluster.start(newcomer)


def disable(cluster: Cluster, machine: Machine, rng: Random) -> bool:
    """Stop gossip in a process that goes on, and enable it again later."""
    process = machine.process
    if process is None or not process.gossips or process.paused:
        return False
    cluster.trace.line(f"disable {machine.endpoint}")
    if not process.operate(ShutdownRequested()):
        return False
    cluster.loop.after(rng.uniform(1.0, 30.0), _enable, cluster, machine, process)
    return True


def _enable(cluster: Cluster, machine: Machine, process: object) -> None:
    if machine.process is None or machine.process is not process or cluster.frozen(machine):
        return
    if machine.process.paused or not machine.process.enable():
        cluster.loop.after(5.0, _enable, cluster, machine, process)


def _may_lose_one(cluster: Cluster) -> bool:
    """A cluster of less than three is none."""
    return sum(not machine.retired for machine in cluster.machines) > 3


def pause(cluster: Cluster, machine: Machine, rng: Random) -> bool:
    """Stand still for a while."""
    process = machine.process
    if process is None or process.paused:
        return False
    seconds = rng.uniform(0.1, cluster.swarm.pause_seconds_max)
    cluster.trace.line(f"pause {machine.endpoint} for {seconds:.3f}")
    process.pause()
    cluster.loop.after(seconds, resume, cluster, machine, process)
    return True


def resume(cluster: Cluster, machine: Machine, process: object) -> None:
    """Go on, if it is still the same process and the cluster is not frozen."""
    if machine.process is not None and machine.process is process and not cluster.frozen(machine):
        cluster.trace.line(f"resume {machine.endpoint}")
        machine.process.resume()


def slow(cluster: Cluster, machine: Machine, rng: Random) -> bool:
    """Take much longer for everything, for a while."""
    process = machine.process
    if process is None or process.slow_seconds:
        return False
    process.slow_seconds = rng.uniform(0.01, 0.3)
    cluster.trace.line(f"slow {machine.endpoint} by {process.slow_seconds:.3f}")
    cluster.loop.after(rng.uniform(1.0, 60.0), _quick, cluster, machine, process)
    return True


def _quick(cluster: Cluster, machine: Machine, process: object) -> None:
    if machine.process is not None and machine.process is process and not cluster.frozen(machine):
        machine.process.slow_seconds = 0.0


def clock_jump(cluster: Cluster, machine: Machine, rng: Random) -> bool:
    """Step the wall clock by up to an hour."""
    seconds = rng.uniform(-3600.0, 3600.0)
    machine.clock.jump(cluster.loop.now, seconds)
    cluster.trace.line(f"clock of {machine.endpoint} jumps {seconds:.3f}")
    return True


def clock_drift(cluster: Cluster, machine: Machine, rng: Random) -> bool:
    """Let the wall clock run fast or slow."""
    rate = rng.choice((-1, 1)) * 10 ** rng.uniform(-5.0, 1.0)
    machine.clock.drift(cluster.loop.now, rate)
    cluster.trace.line(f"clock of {machine.endpoint} drifts {rate:.6f}")
    return True


def disk_fails(cluster: Cluster, machine: Machine, rng: Random) -> bool:
    """The disk is full for a while."""
    if machine.disk.writes_fail:
        return False
    machine.disk.writes_fail = True
    cluster.trace.line(f"disk of {machine.endpoint} full")
    cluster.loop.after(rng.uniform(1.0, 60.0), _disk_works, machine)
    return True


def _disk_works(machine: Machine) -> None:
    machine.disk.writes_fail = False


#: By name; each has a rate ``NAME_rate`` in ``Swarm``.
OPERATIONS: Final[Mapping[str, Operation]] = {
    "publish": publish,
    "purge": purge,
    "join": join,
    "shutdown": shut_down,
    "crash": crash,
    "pause": pause,
    "slow": slow,
    "clock_jump": clock_jump,
    "clock_drift": clock_drift,
    "disk_fails": disk_fails,
    "leave": leave,
    "remove": remove,
    "replace": replace,
    "disable": disable,
}
