# Lag where something is wrong: a walreceiver that is killed, a standby that has not loaded the library, a standby whose clock is
# wrong by an hour.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use PgWeir;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes ();

my $primary = gated_node(
	'primary',
	node => { allows_streaming => 1 },
	'weir.lag_sample_interval' => '20ms',
	'weir.heartbeat_interval' => '100ms',
	'weir.max_replica_lag' => '1s',
	'weir.lag_grace' => '1h',
	'max_wal_senders' => 10);
my $admin = admin_of($primary);
$admin->query('CREATE TABLE t (i int)');
$primary->backup('base');

sub standby_of
{
	my ($name, @lines) = @_;
	my $standby = PostgreSQL::Test::Cluster->new($name);
	$standby->init_from_backup($primary, 'base', has_streaming => 1);
	$standby->append_conf('postgresql.conf', $_) foreach @lines;
	$standby->start;
	return $standby;
}

# One column of weir.stat_replica, of the standby's row on the primary, or of its own.
sub shown
{
	my ($session, $column, $name) = @_;
	return $session->value("SELECT $column FROM weir.stat_replica WHERE " . (defined $name ? "application_name = '$name'" : q{kind = 'self'}));
}

my $seconds = 'extract(epoch FROM replay_lag)';

sub has_caught_up
{
	my ($session, $name) = @_;
	return poll_until('caught up', sub { ($_ = shown($session, "state = 'streaming' AND $seconds < 0.3", $name)) && $_ eq 't' });
}

# A test: replay is paused, something is written, and a while later that is what is shown.
sub lag_is_true
{
	my ($standby, $session, $name, $what) = @_;
	pause_replay($standby);
	my $from = Time::HiRes::time();
	$admin->query('INSERT INTO t VALUES (1)');
	my ($lag, $least, $most);
	poll_until(
		'lag has grown',
		sub {
			my $before = Time::HiRes::time();
			$lag = shown($session, $seconds, $name);
			($least, $most) = ($before - $from, Time::HiRes::time() - $from);
			$least > 1;
		});
	ok($lag > $least - 0.2 && $lag < $most + 0.2, sprintf('%s: %.2f s, true is %.2f s', $what, $lag, $least));
	$standby->query('SELECT pg_wal_replay_resume()');
	return;
}

# ---- a walreceiver that is killed

my $one = standby_of('one', 'wal_retrieve_retry_interval = 100ms', 'restart_after_crash = on');
my $s = admin_of($one);
has_caught_up($s);
has_caught_up($admin, 'one');
my $receiver = q{SELECT pid FROM pg_stat_wal_receiver};
my $pid = $s->value($receiver);
kill 'TERM', $pid;
poll_until('a new walreceiver', sub { my $new = $s->value($receiver); $new ne '' && $new ne $pid });
has_caught_up($s);
has_caught_up($admin, 'one');
is($admin->value('SELECT count(*) FROM weir.stat_replica'), 1, 'a walreceiver was ended: the standby has the row that it had');
$pid = $s->value($receiver);
kill 'KILL', $pid;
$one->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_stat_wal_receiver WHERE pid <> $pid") or die 'no new walreceiver';
$s = admin_of($one);
has_caught_up($s);
has_caught_up($admin, 'one');
is($admin->value('SELECT count(*) FROM weir.stat_replica'), 1, 'one was killed, and took its server through a crash restart: the same');
lag_is_true($s, $s, undef, 'its own row after that');
has_caught_up($s);
$one->stop;

# ---- a standby without the library

my $bare = standby_of('bare', q{shared_preload_libraries = ''});
$s = admin_of($bare);
has_caught_up($admin, 'bare');
lag_is_true($s, $admin, 'bare', 'a standby without the library');
has_caught_up($admin, 'bare');
is($admin->send('SELECT 1')->answer && $s->send('SELECT * FROM weir.stat_replica')->answer->{code}, '55000', 'which itself can say nothing');
pause_replay($s);
$admin->query('INSERT INTO t VALUES (1)');
poll_until('it counts for the throttle', sub { $admin->value(q{SELECT state = 'engaged' AND standby = 'bare' FROM weir.stat_throttle}) eq 't' });
pass('writers are slowed down for it like for any other');
$s->query('SELECT pg_wal_replay_resume()');
has_caught_up($admin, 'bare');
$bare->stop;

# ---- clocks that differ by an hour

SKIP:
{
	my $library = clock_library() or skip 'there is no C compiler', 7;
	my %standby;
	foreach my $hours (1, -1)
	{
		my $name = $hours > 0 ? 'ahead' : 'behind';
		{
			local $ENV{WEIR_CLOCK} = PostgreSQL::Test::Utils::tempdir() . "/$name";
			set_clock($ENV{WEIR_CLOCK}, $hours * 3600);
			local $ENV{LD_PRELOAD} = $library;
			$standby{$name} = standby_of($name);
		}
		$s = admin_of($standby{$name});
		cmp_ok(abs($s->value('SELECT extract(epoch FROM clock_timestamp())') - $hours * 3600 - time), '<', 5, "its clock is an hour $name");
		has_caught_up($s);
		cmp_ok(abs(shown($s, 'extract(epoch FROM clock_skew)') - $hours * 3600), '<', 1, 'its own row says so');
		lag_is_true($s, $s, undef, 'its own row');
		has_caught_up($s);
	}
	# A sender with another clock: what was known of the one before is not kept.
	$s = admin_of($standby{ahead});
	reconfigure($s, 'primary_conninfo' => $standby{behind}->connstr . ' application_name=ahead');
	poll_until('it sees how its clock differs from another sender\'s', sub { abs(shown($s, 'extract(epoch FROM clock_skew)') - 2 * 3600) < 1 });
	has_caught_up($s);
	lag_is_true($s, $s, undef, 'its own row, from another sender');
	$standby{$_}->stop foreach qw(ahead behind);
}

no_warnings($primary, 'no warning in the log of the primary');

done_testing();
