"""Keep a run in one of its phases."""

from tests.faults.cloud import wait_for

PHASES = ["downloading", "starting", "training", "finalizing", "uploading", "ending"]


def hold_in_phase(cloud, phase):
    """Add the faults of the servers that keep attempt 1 in a phase.

    Return the behavior of the fake training that also does this, and a function that waits for the phase.
    """
    if phase == "downloading":
        cloud.storage.fault("delay", on="GET /object/", times=1000, seconds=3)
        return {}, lambda run_id, a: wait_for(lambda: any("GET /object/" in r for r in cloud.storage.requests))
    if phase == "starting":
        return {"seconds_to_start": 60}, lambda run_id, a: a.training()
    if phase == "training":
        return {"seconds_per_epoch": 0.4}, lambda run_id, a: cloud.wait_epoch(run_id, 3)
    if phase == "finalizing":
        return {"seconds_per_epoch": 0.3, "seconds_to_finish": 60}, lambda run_id, a: cloud.wait_phase(
            run_id, "finalizing"
        )
    if phase == "uploading":
        cloud.storage.fault("delay", on="/1/args.yaml", times=1, seconds=6)
        return {}, lambda run_id, a: cloud.wait_phase(run_id, "uploading")
    assert phase == "ending"
    cloud.refuse("finish_training_run")
    return {}, lambda run_id, a: wait_for(lambda: any("finish_training_run" in r[1] for r in cloud.gateway.requests))


def start_in_phase(cloud, host, phase, **settings):
    """Return a host with a run that stays in the phase."""
    data = cloud.store_dataset() if phase == "downloading" else None
    behavior, wait_for_phase = hold_in_phase(cloud, phase)
    a = host("a", behavior, **settings)
    run_id = cloud.enqueue(data, epochs=6)
    wait_for_phase(run_id, a)
    return a, run_id
