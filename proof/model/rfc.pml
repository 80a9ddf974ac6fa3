/*
 * revoke_it of the RFC of 2013, as it was sent: one completion for each object, and a bias that each revoker adds.
 *
 * With two revokers (-DREVOKERS=2) both wait for ever: the second puts its own completion in place of the first one's, and
 * the count never equals one bias again. fs/proc/inode.c, which took the scheme over, lets one remover through.
 */
#ifndef REVOKERS
#define REVOKERS 2
#endif
#define BIAS 100

short in_use;
byte completion = 255;    /* whose it is */
bool completed[REVOKERS];

/* start_using, the method, stop_using: the last one out completes what the object points to. */
proctype Method() {
	atomic {
		if
		:: in_use >= 0 -> in_use++
		:: else -> goto refused
		fi
	}
	atomic {
		in_use--;
		if
		:: in_use == -BIAS && completion != 255 -> completed[completion] = true
		:: else
		fi
	}
refused:
	skip
}

proctype Revoker(byte me) {
	completion = me;
	atomic {
		in_use = in_use - BIAS;
		if
		:: in_use == -BIAS -> goto gone
		:: else
		fi
	}
	completed[me];
gone:
	skip
}

init {
	byte n;
	atomic {
		run Method();
		for (n : 0 .. REVOKERS - 1) { run Revoker(n) }
	}
}
