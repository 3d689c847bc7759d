"""Deadlines: how many seconds everything in the cluster, and in the engines on it, may wait; each with its reason.

They are looked up where they are needed, as `deadlines.GRACE`, so that changing one here changes it everywhere.
"""

from __future__ import annotations

# -- workers and their processes
PRELOAD = 60.0  # for torch to be imported on a worker; an import that takes longer is not waited for
EXIT = 0.5  # for a worker's process to end by itself before it is killed
COMEBACK = 15.0  # for a nanny to have its worker back, even on a busy machine
NO_WORKERS = 10.0  # for a cluster to be without any worker before its job says so
BACK_AGAIN = 60.0  # the same, where nannies of this kernel start workers anew that an item has ended
UNANSWERED = 2.0  # for a worker to say what it computes; one that does not is held up by that
ARRIVAL = 60.0  # for the workers of a remote cluster to arrive after `connect`
PROGRAM = 30.0  # for a program of the system, such as nvidia-smi, to answer
HANDSHAKE = 5.0  # for a new connection to prove that it may come in, or for each word of a proof
DOOR = 5.0  # for a port of this machine to let the doctor in
REQUEST = 60.0  # for a browser that has connected to say what it wants
BRAKE = 5.0  # for the program that slows a worker down to let go of it

# -- gangs
GRACE = 3.0  # for a rank to leave its own code once it has been told to stop
SETTLE = 1.0  # for the cause of a broken collective to come to light, so that it is named and not its consequence
ANSWER = 30.0  # for ranks to answer what their gang asks, which may be much to send
STACKS = 0.2  # for a worker that hangs to write down where it is
LONG_TASK = 5.0  # after which a task counts as long, and ranks are not put behind it
SILENT = 15.0  # for a worker that sends word twice a second to be held up by what it computes; an import takes less
GONE_CLIENT = 10.0  # after which a dead client's workers are free, even where a rank never said that it has gone
STUCK = 15.0  # after which a worker is ended that is still at a dead client's task; ranks see to that themselves before
CLOSE_SEEN = 0.02  # for gloo to find that one of this rank's connections is at its end
CLOSE_SEEN_BY_ALL = 0.3  # for the other ranks to find that too

# -- training on ranks
STOP = 5.0  # for a round to obey Stop before its group is closed under it

# -- how often somebody looks
TICK = 0.1  # at a job's progress, at printed lines, at whether the lab is still open
SHOWN_AGAIN = 2.0  # a lab's table, while something goes on
GANG_POLL = 0.05  # at what the ranks of a run have told
SCHEDULER_POLL = 0.5  # at whether the scheduler of a gang is still there
PAUSED = 0.5  # at whether a worker has too little memory left to go on
CLIENT_POLL = 0.25  # at whether the client still wants a rank
CONNECTION_POLL = 0.05  # at whether an answer is still worth waiting for
WISHES = 0.2  # at what the user wishes of a run: all ranks agree on it
END_POLL = 0.05  # at whether a process that was ended is gone
ACTIVITY = 5.0  # at whether work is still under way, to tell cullers
PARENT_POLL = 1.0  # at whether the kernel is there that started the template of workers
WORKER_POLL = 0.02  # at whether a lost worker is back
REPORTS = 0.5  # at what is new, to report it, unless the user says
CHECKPOINTS = 4.0  # at the state, to save it, where the user does not say after how many rounds
