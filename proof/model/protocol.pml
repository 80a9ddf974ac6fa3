/*
 * The protocol of src/asyncrevoke/_core: to be read beside revokable.py and revocation.py, whose names it has.
 *
 * Code between two awaits is one atomic step, as in an event loop. With -DSLICES each kick and each release comes in a turn
 * of its own, as where there are very many, and nobody closes. What may happen:
 *
 *   a tree of three levels, ROOT > DEV > A and B, where B is opened at any time, and A is below TOKEN, too
 *   two operations, one of them idle, that nest, have a result, are cancelled, are kicked, leave
 *   a revoker of ROOT; one of ROOT again or of TOKEN, with a grace; an owner who closes A, perhaps from inside
 *   awaiters that are cancelled; releases of DEV and A that take their time, and may fail
 *
 * Each fault (-DFAULT=n) is a line of the code left out or put wrongly; proof/model.py says what each is.
 */
#ifndef FAULT
#define FAULT 0
#endif

#define ROOT 0
#define TOKEN 1
#define DEV 2
#define A 3
#define B 4
#define NODES 5
#define NONE 255

#define LIVE 0
#define REVOKED 1
#define KICKED 2
#define RELEASING 3
#define RELEASED 4

#define ACTS 3
#define OPS 2

#define BIT(n) (1 << (n))
#define HAS(mask, n) (((mask) >> (n)) & 1)

byte state[NODES];
byte uses[NODES];       /* operations inside */
byte children[NODES];   /* those that are open, as bits */
byte parents[NODES];
byte acts[NODES];       /* those that swept it, as bits */

byte whole[ACTS];       /* the act whose counts these are */
byte nodes[ACTS];       /* what it swept, as bits */
byte unreleased[ACTS];
byte roots[ACTS];
bool begun[ACTS];
bool ended[ACTS];
byte spare[ACTS];       /* the operation that is not kicked */

byte inside[OPS];       /* the node that it is in */
byte by[OPS];           /* the act that kicked it */
bool idle[OPS];
bool ready[OPS];        /* it has its result */
bool first[OPS];        /* and had it when the kick came */

hidden byte n, p, q, due, turn;  /* within a step alone */

/* What the promises speak of, and the code does not know. */
byte times[NODES];      /* how often the release has run */
byte hooks[NODES];      /* and the kick hook */

#define ABOVE(n) ((n) == A -> BIT(ROOT) | BIT(DEV) | BIT(TOKEN) | BIT(A) : ((n) == B -> BIT(ROOT) | BIT(DEV) | BIT(B) : ((n) == DEV -> BIT(ROOT) | BIT(DEV) : BIT(n))))
#define TAKEN(n) ((begun[0] && (ABOVE(n) & roots[0])) || (begun[1] && (ABOVE(n) & roots[1])) || (begun[2] && (ABOVE(n) & roots[2])))

/* _progress: whoever awaits it is told, if anybody does. */
inline complete(act) {
	ended[act] = true;
	for (q : 0 .. NODES - 1) {
		assert(!HAS(nodes[act], q) || state[q] == RELEASED) /* I4: all of it is gone */
	}
	q = 0
}

/* _released: unlinked from its parents; whoever waited for the act may go on. */
inline released(n) {
	state[n] = RELEASED;
	for (p : 0 .. NODES - 1) {
		if
		:: HAS(parents[n], p) -> children[p] = children[p] & (255 - BIT(n))
		:: else
		fi
	}
	for (p : 0 .. ACTS - 1) {
		if
		:: HAS(acts[n], p) ->
			unreleased[p]--;
			if
			:: unreleased[p] == 0 -> complete(p)
			:: else
			fi
		:: else
		fi
	}
	p = 0
}

/* last_out: release it if nobody is inside, and then perhaps its parents. */
inline last_out(mask) {
	due = mask;
	do
	:: due == 0 -> break
	:: else ->
		n = 0;
		do
		:: HAS(due, n) -> break
		:: else -> n++
		od;
		due = due & (255 - BIT(n));
		if
		:: uses[n] == 0 && (children[n] == 0 || FAULT == 1) && acts[n] != 0 && (state[n] < RELEASING || (FAULT == 2 && state[n] == RELEASING)) ->
			if
			:: state[n] < KICKED -> state[n] = KICKED; hooks[n]++
			:: else
			fi;
			state[n] = RELEASING; /* I3 from here */
			times[n]++;
			assert(times[n] == 1);                         /* I2: once */
			assert(uses[n] == 0 && children[n] == 0);      /* I2: after its last user, children first */
			if
			:: n == DEV || n == A                         /* its release takes its time */
			:: else -> released(n); due = due | parents[n]
			fi
		:: else
		fi
	od;
	n = 0
}

/* _enter_kicked: its hook is the user's code, which may call anything. */
inline enter_kicked(n) {
	if
	:: state[n] < KICKED ->
		state[n] = KICKED;
		hooks[n]++;
		assert(hooks[n] == 1);
		for (p : 0 .. NODES - 1) {
			assert(!(HAS(ABOVE(p), n) && state[p] == LIVE && (p != B || HAS(children[DEV], B))))  /* I7: all refuse */
		}
		p = 0
	:: else
	fi
}

/* _kick of one node. */
inline kick(node, act, idle_only) {
	if
	:: state[node] < RELEASING ->
		if
		:: !idle_only -> enter_kicked(node)
		:: else
		fi;
		for (p : 0 .. OPS - 1) {
			if
			:: inside[p] == node && by[p] == NONE && (idle[p] || !idle_only) && spare[act] != p ->
				by[p] = act;
				first[p] = ready[p]
			:: else
			fi
		}
		p = 0
	:: else
	fi
}

/* _refuse: one sweep over what is open below. */
inline sweep(act, root) {
	due = BIT(root);
	for (p : 0 .. NODES - 1) { /* parents have smaller numbers than their children */
		if
		:: HAS(due, p) && state[p] != RELEASED ->
			acts[p] = acts[p] | BIT(act);
			nodes[act] = nodes[act] | BIT(p);
			unreleased[act]++;
			if
			:: state[p] == LIVE && !(FAULT == 3 && p == A && root == TOKEN) -> state[p] = REVOKED  /* I1 from here */
			:: else
			fi;
			due = due | children[p]
		:: else
		fi
	}
	p = 0;
	due = 0;
	ended[act] = nodes[act] == 0
}

#ifdef SLICES
#define TURN break  /* each kick and each release has a turn of its own */
#else
#define TURN skip   /* all of it is done before revoke() returns, as the code does with few nodes */
#endif

inline kick_next(act, idle_only, at) {
	do
	:: at == NODES -> break
	:: at < NODES && HAS(nodes[whole[act]], at) -> kick(at, act, idle_only); at++; TURN
	:: at < NODES && !HAS(nodes[whole[act]], at) -> at++
	od
}

inline last_out_next(act, at) {
	do
	:: at == 0 -> break
	:: else ->
		at--;
		if
		:: HAS(nodes[whole[act]], at) && FAULT != 4 -> last_out(BIT(at)); TURN
		:: else
		fi
	od
}

/* _work: kick, parents before children; then whoever is the last may be out already; and when the grace is over, kick all. */
proctype Work(byte act; bool grace) {
	byte at;
#ifdef SLICES
	do
	:: atomic { at < NODES -> kick_next(act, grace, at) }
	:: at == NODES -> break
	od;
	do
	:: atomic { at > 0 -> last_out_next(act, at) }
	:: at == 0 -> break
	od;
#endif
	do
	:: atomic { grace && FAULT != 5 && at < NODES -> kick_next(act, false, at) } /* it is over at some time */
	:: !grace || FAULT == 5 || at == NODES -> break
	od
}

/* revoke: it returns at once; whoever awaits it may be cancelled. */
inline revoke(act, root, grace) {
	atomic {
		roots[act] = BIT(root);
		whole[act] = act;
		for (p : 0 .. ACTS - 1) {
			if
			:: FAULT != 6 && p != act && begun[p] && roots[p] == BIT(root) && HAS(acts[root], p) -> whole[act] = whole[p] /* _is_again */
			:: else
			fi
		}
		p = 0;
		if
		:: FAULT == 6 && acts[root] != 0 -> acts[root] = BIT(act); unreleased[act]++; nodes[act] = BIT(root) /* one waiter alone */
		:: FAULT != 6 && whole[act] != act
		:: else -> sweep(act, root)
		fi;
		begun[act] = true;
#ifdef SLICES
		run Work(act, grace)
#else
		turn = 0;
		kick_next(act, grace, turn);
		last_out_next(act, turn);
		if
		:: grace -> run Work(act, true)
		:: else
		fi
#endif
	}
}

#define OVER(act) (begun[act] && ended[whole[act]])

/* It may go on, be cancelled, or end: nothing of the revocation is its. */
proctype Revoker(byte act) {
	if
	:: act == 0 -> revoke(0, ROOT, false)
	:: act == 0 /* never */
	:: act == 1 -> revoke(1, ROOT, true)
	:: act == 1 -> revoke(1, TOKEN, true)
	fi
}

proctype Closer() {
	atomic {
		spare[2] = (inside[0] == A -> 0 : NONE);
		revoke(2, A, false)
	}
}

/* open, whose last step this is; and then an operation on what was opened. */
proctype Opener() {
	atomic {
		if
		:: acts[DEV] == 0 ->
			assert(!TAKEN(DEV)); /* I1 */
			parents[B] = BIT(DEV);
			children[DEV] = children[DEV] | BIT(B);
			run Operation(1, B)
		:: else -> state[B] = RELEASED
		fi
	}
}

/* `with node.using():` around a wait. */
proctype Operation(byte me; byte node) {
	bool delivered;
	atomic {
		if
		:: acts[node] == 0 && state[node] == LIVE ->
			assert(!TAKEN(node)); /* I1: nothing new starts below */
			uses[node]++;
			inside[me] = node
		:: else -> goto refused
		fi
	}
	do /* nested in the same task's operation, at any time */
	:: atomic {
		acts[node] == 0 || state[node] < KICKED || FAULT == 7 -> assert(state[node] < KICKED) /* I1: until the kick */
	}
	:: break
	od;
end:
	if
	:: by[me] != NONE
	:: me == 0 -> ready[me] = true /* and the kick may come before the task has its turn */
	:: me == 0 /* it is cancelled from outside; the other one waits for ever */
	fi;
leave:
	atomic {
		assert(state[node] < RELEASING); /* I3: no operation after the release */
		delivered = ready[me] && !(FAULT == 10 && by[me] != NONE);
		assert(delivered || !first[me]); /* I6: a result that it had is delivered */
		uses[node]--;
		inside[me] = NONE;
		if
		:: uses[node] == 0 && FAULT != 8 -> last_out(BIT(node))
		:: else
		fi
	}
refused:
	skip
}

/* The task of a release that takes its time. That it fails makes no difference (I7). */
proctype Release(byte node) {
end:
	atomic {
		state[node] == RELEASING -> n = node;
		assert(uses[n] == 0 && children[n] == 0);
		released(n);
		if
		:: FAULT != 9 -> last_out(parents[node])
		:: else
		fi
	}
}

init {
	atomic {
		for (n : 0 .. ACTS - 1) { spare[n] = NONE };
		for (n : 0 .. OPS - 1) { inside[n] = NONE; by[n] = NONE };
		idle[0] = true;
		parents[DEV] = BIT(ROOT);
		parents[A] = BIT(DEV) | BIT(TOKEN);
		children[ROOT] = BIT(DEV);
		children[DEV] = BIT(A);
		children[TOKEN] = BIT(A);
		run Release(DEV);
		run Release(A);
#ifndef SLICES
		run Closer();
#else
		begun[2] = true;
		ended[2] = true;
		whole[2] = 2;
#endif
		run Revoker(0);
		run Revoker(1);
		run Operation(0, A);
		if
		:: run Operation(1, DEV); state[B] = RELEASED
		:: run Opener()
		fi
	}
}

/* I4: every revocation completes, whoever waits, if operations leave. */
ltl completes { ([] (begun[0] -> <> OVER(0))) && ([] (begun[1] -> <> OVER(1))) && ([] (begun[2] -> <> OVER(2))) }
