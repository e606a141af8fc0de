package PgWeir;

# What the TAP tests share: a node with pg_weir, sessions that may wait in the gate, and ways to wait for a
# condition. Every wait has a deadline; nothing here sleeps to let something happen.

use strict;
use warnings;

use Carp ();
use Exporter 'import';
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes ();

our @EXPORT = qw(gated_node admin_of app_of reconfigure admission poll_until happens_within wait_for_waiting wait_for_lock pause_replay waits_long_enough
  answers_at_once waits_for_slot is_refused nothing_left startup_value startups_waiting wait_for_startups
  occupy_startup queue_startups all_served no_startups_left
  set_standbys skip_without_coalescing opt_in is_coalesced coalesced_requests no_warnings clock_library set_clock);

# PostgreSQL::Test::Utils sends what a test dies of to its log file alone.
$SIG{__DIE__} = sub { diag(Carp::longmess($_[0])) if defined $^S && !$^S };

# Seconds after which something that must happen is taken not to happen.
our $deadline_s = 60;

# "At once", in seconds: below the longest nap of a waiter that nobody wakes (5 s), far above a slow machine's hiccups.
our $at_once_s = 2;

# Starts a server with pg_weir in enforce mode, the extension, and the ordinary role "app" (superusers bypass the
# gate). Settings are postgresql.conf's; "node" holds what PostgreSQL::Test::Cluster->init takes.
sub gated_node
{
	my ($name, %settings) = @_;
	my $init = delete $settings{node} // {};
	my %all = (
		'shared_preload_libraries' => 'pg_weir',
		'weir.mode' => 'enforce',
		'weir.max_active' => 1,
		'weir.idle_yield' => -1,
		'weir.stall_timeout' => 0,
		'max_connections' => 50,
		'autovacuum' => 'off',
		%settings);

	my $node = PostgreSQL::Test::Cluster->new($name);
	$node->init(%$init);
	$node->append_conf('postgresql.conf', "$_ = '$all{$_}'") foreach sort keys %all;
	$node->start;
	$node->safe_psql('postgres',
		'CREATE EXTENSION pg_weir; CREATE ROLE app LOGIN; GRANT ALL ON SCHEMA public TO PUBLIC;');
	return $node;
}

# A superuser's session, which never waits; and one of the role "app".
sub admin_of
{
	my ($node, %options) = @_;
	return PgWeir::Session->new($node, user => scalar getpwuid($>), %options);
}

sub app_of
{
	my ($node, %options) = @_;
	return PgWeir::Session->new($node, %options);
}

my $marker_ms = 60_000;

# Changes settings, and returns when everybody's decisions rest on them: the launcher has copied them and sleeps
# again. The marker that shows it is weir.queue_timeout: about a minute, unless it is given.
sub reconfigure
{
	my ($admin, %settings) = @_;
	my $timeout = $settings{'weir.queue_timeout'} //= ++$marker_ms . 'ms';
	$admin->query("ALTER SYSTEM SET $_ = '$settings{$_}'") foreach sort keys %settings;
	$admin->query('SELECT pg_reload_conf()');
	poll_until(
		'settings are in force',
		sub {
			$admin->value("SELECT s.wait_event IS NOT NULL
				AND coalesce(c.queue_timeout, '0') = interval '$timeout'
				FROM weir.stat_class c, pg_stat_activity s
				WHERE c.class = 'default' AND s.backend_type = 'pg_weir launcher'") eq 't';
		});
	return;
}

# Synchronous standbys, none of which is there; returns when commits wait for them, or with '' when none does any more. The
# checkpointer tells the others, when it comes to it: until then commits do as before.
sub set_standbys
{
	my ($node, $names) = @_;
	my ($admin, $probe) = map { admin_of($node) } 1 .. 2;
	my $pid = $probe->value('SELECT pg_backend_pid()');
	$admin->query($_) foreach "ALTER SYSTEM SET synchronous_standby_names = '$names'", 'SELECT pg_reload_conf()';
	poll_until(
		"synchronous_standby_names = '$names' is in force",
		sub {
			$probe->send(q{SELECT pg_logical_emit_message(true, 'probe', '')});
			my $waiting = 0;
			poll_until('a commit waits, or does not',
				sub { $probe->answered || ($waiting = $admin->value("SELECT coalesce(wait_event = 'SyncRep', false) FROM pg_stat_activity WHERE pid = $pid") eq 't') });
			$admin->query("SELECT pg_cancel_backend($pid)") if $waiting;
			$probe->answer;
			return $waiting == ($names ne '');
		});
	$_->close foreach $admin, $probe;
	return;
}

# The server's log holds no line of level WARNING or PANIC, and no failed assertion.
sub no_warnings
{
	my ($node, $name) = @_;
	is(join("\n", slurp_file($node->logfile) =~ /^.* (?:WARNING|PANIC|TRAP):.*$/mg), '', $name);
	return;
}

# A column of weir.stat_admission.
sub admission
{
	my ($admin, $column) = @_;
	return $admin->value("SELECT $column FROM weir.stat_admission");
}

# Calls $condition until it is true; dies at the deadline. Returns how long that took, in seconds.
sub poll_until
{
	my ($what, $condition) = @_;
	my $began = Time::HiRes::time();
	until ($condition->())
	{
		die "timed out: $what" if Time::HiRes::time() - $began > $deadline_s;
		Time::HiRes::usleep(5_000);
	}
	return Time::HiRes::time() - $began;
}

# A test: $condition becomes true within so many seconds. Looks on up to the usual deadline: what follows may need it.
sub happens_within
{
	my ($seconds, $name, $condition) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $took_s = poll_until($name, $condition);
	return ok($took_s < $seconds, "$name within $seconds s") || diag(sprintf('it took %.2f s', $took_s));
}

sub wait_for_waiting
{
	my ($admin, $count) = @_;
	return poll_until("$count waiting", sub { admission($admin, 'waiting') == $count });
}

# What $session has been sent waits for a lock, its own or behind a worker.
sub wait_for_lock
{
	my ($admin, $session) = @_;
	return poll_until(
		'a session waits for a lock',
		sub {
			die 'it was answered' if $session->answered;
			$admin->value('SELECT wait_event_type FROM pg_stat_activity WHERE pid = ' . $session->pid) eq 'Lock';
		});
}

# $session is a superuser's, on a standby.
sub pause_replay
{
	my ($session) = @_;
	$session->query('SELECT pg_wal_replay_pause()');
	return poll_until('replay is paused', sub { $session->value('SELECT pg_get_wal_replay_pause_state()') eq 'paused' });
}

# Somebody has waited for the supervisor's many rounds (it makes one each 5 ms): what it has not done by then it will
# not do.
sub waits_long_enough
{
	my ($admin, $pid) = @_;
	poll_until(
		"$pid waits for half a second",
		sub {
			$admin->value(
				"SELECT count(*) FROM weir.activity WHERE pid = $pid AND state = 'waiting' AND clock_timestamp() - since > '500ms'"
			) == 1;
		});
	return;
}

# A test: $sql is answered without an error, while whoever waits goes on waiting.
sub answers_at_once
{
	my ($session, $sql, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $began = Time::HiRes::time();
	my $answer = $session->send($sql)->answer($at_once_s);
	my $took_s = Time::HiRes::time() - $began;
	note(sprintf('%.1f ms', $took_s * 1000));
	return ok($answer && !$answer->{code}, $name // "at once: $sql")
	  || diag($answer ? "$answer->{code}: $answer->{message}" : "no answer after $took_s s");
}

# A test: what $session has been sent waits for a slot until $release is called, and then ends at once, without an error.
sub waits_for_slot
{
	my ($admin, $session, $name, $release) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $waits = eval {
		poll_until($name, sub { $session->state($admin) eq 'waiting' || $session->answered });
		!$session->answered;
	};
	$release->();
	my $answer = $session->answer($at_once_s);
	return ok($waits && $answer && !$answer->{code}, "waits: $name")
	  || diag($waits ? 'it waited' : 'it did not wait', $answer ? "; $answer->{code} $answer->{message}" : '; no answer');
}

# A test: $answer is a refusal with SQLSTATE 53300, a DETAIL and a HINT with a delay.
sub is_refused
{
	my ($answer, $detail, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is($answer->{code}, '53300', "$name: SQLSTATE");
	like($answer->{detail}, $detail, "$name: DETAIL");
	return like($answer->{hint}, qr/^Retry in about [0-9.]+ s\.$/, "$name: HINT");
}

# A test: after all that happened nobody holds, lends or waits for a slot. A backend that ends takes a moment.
sub nothing_left
{
	my ($admin, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $left = '';
	eval {
		poll_until(
			'nothing left',
			sub {
				$left = join ', of classes ', map { "@$_" } @{
					$admin->query('SELECT active, waiting, lent FROM weir.stat_admission
						UNION SELECT sum(active), sum(waiting), sum(lent) FROM weir.stat_class') };
				$left eq '0 0 0';
			});
	};
	return is($left, '0 0 0', "$name: 0 active, 0 waiting, 0 lent");
}

# ---- connections at the gate

# A column of weir.stat_startup.
sub startup_value
{
	my ($admin, $column, $class) = @_;
	return $admin->value("SELECT $column FROM weir.stat_startup WHERE class = '" . ($class // 'default') . "'");
}

sub startups_waiting
{
	my ($admin) = @_;
	return $admin->value('SELECT waiting FROM weir.startup_limit');
}

sub wait_for_startups
{
	my ($admin, $starting, $waiting) = @_;
	return poll_until("$starting start, $waiting wait",
		sub { "@{ $admin->query('SELECT starting, waiting FROM weir.startup_limit')->[0] }" eq "$starting $waiting" });
}

# Holds the only startup slot (weir.max_startups = 1) until the returned sub is called, which returns the holder's answer.
# The holder's database is being renamed in a transaction that $locker, a superuser, keeps open; InitPostgres waits for that.
sub occupy_startup
{
	my ($node, $admin, $locker) = @_;
	$locker->query('CREATE DATABASE shop')
	  if $locker->value(q{SELECT count(*) FROM pg_database WHERE datname = 'shop'}) == 0;
	$locker->query('BEGIN');
	$locker->query('ALTER DATABASE shop RENAME TO shop_renamed');
	my $holder = PgWeir::Session->new($node, database => 'shop', async => 1);
	wait_for_startups($admin, 1, 0);
	return sub {
		$locker->query('ROLLBACK');
		my $answer = $holder->answer;
		$holder->close;
		return $answer;
	};
}

# Connections of these options, one behind the other in the queue.
sub queue_startups
{
	my ($node, $admin, $count, %options) = @_;
	my $before = startups_waiting($admin);
	return map {
		my $session = PgWeir::Session->new($node, async => 1, %options);
		my $want = $before + $_;
		# It reads meanwhile, and so answers when it is asked for a password.
		poll_until("$want wait", sub { $session->answered; startups_waiting($admin) == $want });
		$session;
	} 1 .. $count;
}

# A test: each of these connections comes in. They are closed.
sub all_served
{
	my ($name, @sessions) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @states = map { my $answer = $_->answer; $answer ? $answer->{status} // $answer->{message} : 'none' } @sessions;
	$_->close foreach @sessions;
	return is(join(' ', @states), join(' ', ('I') x @sessions), "$name: all are served");
}

# A test: no connection starts or waits to start.
sub no_startups_left
{
	my ($admin, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $left = '';
	eval {
		poll_until('nobody starts',
			sub { ($left = "@{ $admin->query('SELECT starting, waiting FROM weir.startup_limit')->[0] }") eq '0 0' });
	};
	return is($left, '0 0', "$name: nobody starts or waits");
}

# Skips the file where the extension cannot coalesce. WITHOUT_COALESCING=1 runs it all the same, on tables that are not
# opted in: what then fails is the test's mistake.
sub skip_without_coalescing
{
	my ($node) = @_;
	my $there = admin_of($node)->value("SELECT to_regprocedure('weir.coalesce_table(regclass)')");
	plan(skip_all => 'this pg_weir does not coalesce') if $there eq '' && !$ENV{WITHOUT_COALESCING};
	return;
}

sub opt_in
{
	my ($admin, @tables) = @_;
	return if $ENV{WITHOUT_COALESCING};
	$admin->query("SELECT weir.coalesce_table('$_')") foreach @tables;
	return;
}

# A test: so many of the table's rows at least came in batches. A test in which nothing did would prove nothing.
sub is_coalesced
{
	my ($admin, $table, $least) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return if $ENV{WITHOUT_COALESCING};
	note("$table: ", $admin->value("SELECT s FROM weir.stat_coalesce AS s WHERE relation = '$table'::regclass") // 'nothing');
	return cmp_ok(coalesced_requests($admin, $table), '>=', $least, "$table: coalesced");
}

# Requests of a table that were coalesced.
sub coalesced_requests
{
	my ($admin, $table) = @_;
	return $admin->value("SELECT coalesce(sum(requests), 0) FROM weir.stat_coalesce WHERE relation = '$table'::regclass");
}

# ---- a machine's clock

# A library for LD_PRELOAD: the clock of a server that has it goes ahead by as many seconds as the file in $ENV{WEIR_CLOCK} says,
# which set_clock() writes. (libfaketime does not do: a process that the postmaster forks in a signal handler may have the real
# time.) Undef: there is no C compiler.
sub clock_library
{
	my $base = PostgreSQL::Test::Utils::tempdir() . '/clock';
	open(my $source, '>', "$base.c") or die "$base.c: $!";
	print $source <<'C';
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
static const volatile int64_t *ahead;
__attribute__((constructor)) static void start(void)
{
	void *file = mmap(0, sizeof(*ahead), PROT_READ, MAP_SHARED, open(getenv("WEIR_CLOCK"), O_RDONLY), 0);
	ahead = file == MAP_FAILED ? 0 : file;
}
int gettimeofday(struct timeval *restrict to, void *restrict zone)
{
	struct timespec now;
	(void) zone;
	clock_gettime(CLOCK_REALTIME, &now);
	to->tv_sec = now.tv_sec + (ahead ? *ahead : 0);
	to->tv_usec = now.tv_nsec / 1000;
	return 0;
}
time_t time(time_t *to) /* pg_ctl compares with it */
{
	struct timeval now;
	gettimeofday(&now, 0);
	if (to)
		*to = now.tv_sec;
	return now.tv_sec;
}
C
	close $source;
	return system('cc', '-shared', '-fPIC', '-o', "$base.so", "$base.c") == 0 ? "$base.so" : undef;
}

# In its place, because it is mapped.
sub set_clock
{
	my ($file, $seconds) = @_;
	open(my $clock, -e $file ? '+<' : '>', $file) or die "$file: $!";
	binmode $clock;
	print $clock pack('q', $seconds);
	return close $clock;
}

# A client that speaks the protocol itself: it can send something and look later whether an answer came, costs no
# process, and can vanish. Over the node's socket, over loopback (tcp => 1), or over something that is open already
# (socket => ...). With async => 1 the answer to the startup message is still to be read, with answer(). A password is
# given when it is asked for, in clear text, for md5 or for scram-sha-256.
package PgWeir::Session;

use Digest::MD5 ();
use Digest::SHA ();
use IO::Select;
use IO::Socket::INET;
use IO::Socket::UNIX;
use MIME::Base64 ();
use Time::HiRes ();

sub new
{
	my ($class, $node, %options) = @_;
	my $socket = $options{socket} ? $options{socket}
	  : $options{tcp} ? IO::Socket::INET->new('127.0.0.1:' . $node->port)
	  : IO::Socket::UNIX->new($node->host . '/.s.PGSQL.' . $node->port);
	die "connect: $!" unless $socket;
	my $self = bless {
		socket => $socket,
		user => $options{user} // 'app',
		password => $options{password} // '',
		in => '',
		answers => [],
		current => _no_answer() }, $class;
	my %startup = (
		user => $self->{user},
		database => $options{database} // 'postgres',
		application_name => $options{application_name} // 'tap',
		map { $_ => $options{$_} } grep { $options{$_} } qw(options replication));
	my $body = pack('N', 196608) . join('', map { "$_\0$startup{$_}\0" } sort keys %startup) . "\0";
	$self->_write(pack('N', length($body) + 4) . $body);
	return $self if $options{async};
	my $answer = $self->answer or die 'no answer to the startup message';
	die 'connection refused: ' . ($answer->{message} // 'closed without a word') if $answer->{code} || $answer->{closed};
	return $self;
}

# The server process.
sub pid { return $_[0]{pid} }

# Sends a simple query and returns at once.
sub send
{
	my ($self, $sql) = @_;
	return $self->_message(Q => "$sql\0");
}

# Sends Parse, and waits for its answer.
sub parse
{
	my ($self, $name, $sql) = @_;
	return $self->_message(P => "$name\0$sql\0" . pack('n', 0))->_message(S => '')->answer;
}

# Sends Bind and Execute with these parameters, as text, and returns at once.
sub execute
{
	my ($self, $name, @parameters) = @_;
	return $self->_at_one_go(sub { $self->_bind_and_execute($name, @parameters)->_message(S => '') });
}

# Sends Parse, Bind and Execute at one go, and returns at once.
sub extended
{
	my ($self, $sql, @parameters) = @_;
	return $self->pipeline([ $sql, @parameters ]);
}

# Parse, Bind and Execute of several statements before one Sync. There is one answer: all rows, and the tags of all.
sub pipeline
{
	my ($self, @statements) = @_;
	return $self->_at_one_go(
		sub {
			$self->_parse_bind_and_execute(@$_) foreach @statements;
			$self->_message(S => '');
		});
}

# The same, but each statement is on its way, and answered, before the next is sent, and all before Sync.
sub pipeline_in_steps
{
	my ($self, @statements) = @_;
	foreach my $statement (@statements)
	{
		my ($before, $end) = (scalar @{ $self->{current}{tags} }, Time::HiRes::time() + $PgWeir::deadline_s);
		$self->_at_one_go(sub { $self->_parse_bind_and_execute(@$statement)->_message(H => '') });
		$self->_read(0.1)
		  until @{ $self->{current}{tags} } > $before || $self->{current}{code} || Time::HiRes::time() > $end || !$self->{socket};
	}
	return $self->_message(S => '');
}

# Executed and answered, and never to be committed: no Sync.
sub unsynced
{
	my ($self, $sql, @parameters) = @_;
	$self->_parse_bind_and_execute($sql, @parameters)->_message(H => '');
	PgWeir::poll_until('it is executed', sub { $self->_read(0.1); @{ $self->{current}{tags} } });
	return $self;
}

sub _parse_bind_and_execute
{
	my ($self, $sql, @parameters) = @_;
	return $self->_message(P => "\0$sql\0" . pack('n', 0))->_bind_and_execute('', @parameters);
}

# Parameters are text; undef is NULL.
sub _bind_and_execute
{
	my ($self, $name, @parameters) = @_;
	my $values = join '', map { defined ? pack('N/a*', $_) : pack('N', 0xFFFFFFFF) } @parameters;
	return $self->_message(B => "\0$name\0" . pack('nn', 0, scalar @parameters) . $values . pack('n', 0))
	  ->_message(E => "\0" . pack('N', 0));
}

# The next answer, up to ReadyForQuery or the end of the connection; undef when none comes in time.
# {rows, tag, tags, code, severity, message, detail, hint, position, schema, table, column, type, constraint, notices, status, closed}; COPY's lines are rows of one column.
sub answer
{
	my ($self, $timeout_s) = @_;
	my $end = Time::HiRes::time() + ($timeout_s // $PgWeir::deadline_s);
	until (@{ $self->{answers} })
	{
		my $left = $end - Time::HiRes::time();
		return if $left <= 0 || !$self->{socket};
		$self->_read($left);
	}
	return shift @{ $self->{answers} };
}

# Whether an answer is there.
sub answered
{
	my ($self) = @_;
	$self->_read(0);
	return @{ $self->{answers} } > 0;
}

# Whether the connection is open, as far as has been read.
sub connected { return defined $_[0]{socket} }

# Runs $sql; dies on an error. query: its rows; value: the first column of the first.
sub query
{
	my ($self, $sql) = @_;
	my $answer = $self->send($sql)->answer or die "no answer: $sql";
	die "$answer->{code} $answer->{message}: $sql" if $answer->{code};
	return $answer->{rows};
}

sub value
{
	my ($self, $sql) = @_;
	my $rows = $self->query($sql);
	return @$rows ? $rows->[0][0] // '' : '';
}

# What the gate has of it: active, lent, waiting, or nothing.
sub state
{
	my ($self, $admin) = @_;
	return $admin->value("SELECT state FROM weir.activity WHERE pid = $self->{pid}");
}

# The class it holds, lends or waits for a slot of.
sub class
{
	my ($self, $admin) = @_;
	return $admin->value("SELECT class FROM weir.activity WHERE pid = $self->{pid}");
}

# Ends the connection as a client does that takes its leave.
sub close
{
	my ($self) = @_;
	$self->_message(X => '') if $self->{socket};
	return $self->vanish;
}

# Ends it as the kernel does for a client that was killed.
sub vanish
{
	my ($self) = @_;
	$self->{socket}->close if $self->{socket};
	$self->{socket} = undef;
	return;
}

sub _no_answer { return { rows => [], tags => [], notices => [], code => '' } }

sub _message
{
	my ($self, $type, $body) = @_;
	return $self->_write($type . pack('N', length($body) + 4) . $body);
}

# Whatever $send sends goes out as one packet, as drivers do it.
sub _at_one_go
{
	my ($self, $send) = @_;
	{
		local $self->{held} = '';
		$send->();
		$send = $self->{held};
	}
	return $self->_write($send);
}

sub _write
{
	my ($self, $bytes) = @_;
	if (defined $self->{held})
	{
		$self->{held} .= $bytes;
		return $self;
	}
	local $SIG{PIPE} = 'IGNORE';
	syswrite $self->{socket}, $bytes if $self->{socket};
	return $self;
}

# Reads what comes within that time, once.
sub _read
{
	my ($self, $timeout_s) = @_;
	return if !$self->{socket} || !IO::Select->new($self->{socket})->can_read($timeout_s);
	if (!sysread($self->{socket}, $self->{in}, 65536, length $self->{in}))
	{
		$self->{current}{closed} = 1;
		$self->_answered;
		return $self->vanish;
	}
	while (length($self->{in}) >= 5)
	{
		my ($type, $length) = unpack('a1N', $self->{in});
		last if length($self->{in}) < $length + 1;
		$self->_take($type, substr($self->{in}, 5, $length - 4));
		substr($self->{in}, 0, $length + 1) = '';
	}
	return;
}

sub _answered
{
	my ($self) = @_;
	push @{ $self->{answers} }, $self->{current};
	$self->{current} = _no_answer();
	return;
}

sub _take
{
	my ($self, $type, $body) = @_;
	my $answer = $self->{current};
	if ($type eq 'Z')
	{
		$answer->{status} = $body;
		$self->_answered;
	}
	elsif ($type eq 'R') { $self->_authenticate(unpack('Na*', $body)) }
	elsif ($type eq 'K') { $self->{pid} = unpack('N', $body) }
	elsif ($type eq 'D') { push @{ $answer->{rows} }, _columns($body) }
	elsif ($type eq 'd') { push @{ $answer->{rows} }, [ $body =~ /(.*)/ ] }
	elsif ($type eq 'C') { push @{ $answer->{tags} }, $answer->{tag} = unpack('Z*', $body) }
	elsif ($type eq 'G') { $self->_message(c => '') }    # COPY FROM STDIN: no rows
	elsif ($type eq 'E') { %$answer = (%$answer, %{ _report($body) }) }
	elsif ($type eq 'N') { push @{ $answer->{notices} }, _report($body) }
	return;
}

# Answers the server's demand; it does not check that the server knows the password, too.
sub _authenticate
{
	my ($self, $demand, $body) = @_;
	if ($demand == 3) { $self->_message(p => "$self->{password}\0") }
	elsif ($demand == 5)
	{
		my $secret = Digest::MD5::md5_hex($self->{password} . $self->{user});
		$self->_message(p => 'md5' . Digest::MD5::md5_hex($secret . $body) . "\0");
	}
	elsif ($demand == 10) { $self->_message(p => pack('Z*N/a*', 'SCRAM-SHA-256', 'n,,n=,r=tap')) }
	elsif ($demand == 11)
	{
		my ($nonce, $salt, $rounds) = $body =~ /^r=(.*),s=(.*),i=(\d+)$/;
		my $salted = my $u = Digest::SHA::hmac_sha256(MIME::Base64::decode_base64($salt) . pack('N', 1), $self->{password});
		$salted ^= $u = Digest::SHA::hmac_sha256($u, $self->{password}) foreach 2 .. $rounds;
		my $key = Digest::SHA::hmac_sha256('Client Key', $salted);
		my $signature = Digest::SHA::hmac_sha256("n=,r=tap,$body,c=biws,r=$nonce", Digest::SHA::sha256($key));
		$self->_message(p => "c=biws,r=$nonce,p=" . MIME::Base64::encode_base64($key ^ $signature, ''));
	}
	return;
}

# What an error or a notice says.
sub _report
{
	my ($body) = @_;
	my %field = map { substr($_, 0, 1) => substr($_, 1) } grep { length } split(/\0/, $body);
	my %report;
	@report{qw(severity code message detail hint position schema table column type constraint)} =
	  map { $_ // '' } @field{qw(V C M D H P s t c d n)};
	return \%report;
}

sub _columns
{
	my ($body) = @_;
	my ($count, $at) = (unpack('n', $body), 2);
	my @columns;
	foreach (1 .. $count)
	{
		my $length = unpack('l>', substr($body, $at, 4));
		push @columns, $length < 0 ? undef : substr($body, $at + 4, $length);
		$at += 4 + ($length < 0 ? 0 : $length);
	}
	return \@columns;
}

1;
