# Lag as it is, not as pg_stat_replication has it: right when nothing is written, growing with the clock when replay stands still,
# of each standby at the server that sends it WAL, of the standby itself, and on through promotion.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use IPC::Run ();
use Http;
use PgWeir;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes ();

# Of what is shown: a sample's distance, and 100 ms.
my $tolerance_s = 0.2;

my $primary = gated_node('primary', node => { allows_streaming => 1 }, 'autovacuum' => 'off');
my $p = admin_of($primary);
$p->query('CREATE TABLE t (i int)');
my $sampler = q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_weir sampler'};
poll_until('the sampler starts', sub { $p->value($sampler) ne '' });

sub standby_of
{
	my ($node, $name, $application_name) = @_;
	my $standby = PostgreSQL::Test::Cluster->new($name);
	$standby->init_from_backup($primary, 'base', has_streaming => 1);
	my $from = $node->connstr . " application_name='$application_name'";
	$from =~ s/'/''/g;
	$standby->append_conf('postgresql.conf', "primary_conninfo = '$from'");
	$standby->start;
	return $standby;
}

# Columns of one row of weir.stat_replica, by name ('self': the server's own).
sub replica
{
	my ($admin, $name, $columns) = @_;
	my $which = $name eq 'self' ? q{kind = 'self'} : "application_name = '$name'";
	my $rows = $admin->query("SELECT $columns FROM weir.stat_replica WHERE $which");
	return wantarray ? ($rows->[0] ? @{ $rows->[0] } : ()) : $rows->[0][0];
}

sub state_is
{
	my ($admin, $name, $state) = @_;
	return poll_until("$name: $state", sub { (replica($admin, $name, 'state') // '') eq $state });
}

sub wait_for_no_lag
{
	my ($admin, $name) = @_;
	return poll_until("$name has caught up", sub { (replica($admin, $name, 'extract(epoch FROM replay_lag)') // 9) < 0.5 });
}

# A test: for $seconds the lag is the age of the write that is not replayed, of which we know when it was made.
sub lag_grows_with_the_clock
{
	my ($admin, $name, $from, $to, $seconds) = @_;
	my ($worst, $samples, $end) = (0, 0, Time::HiRes::time() + $seconds);
	do
	{
		my ($at, $lag) = replica($admin, $name, 'extract(epoch FROM sampled_at), extract(epoch FROM replay_lag)');
		my ($most, $least) = ($at - $from, $at - $to);
		if ($most > 0.3)
		{
			my $error = $lag > $most ? $lag - $most : $lag < $least ? $least - $lag : 0;
			$worst = $error if $error > $worst;
			$samples++;
		}
		Time::HiRes::usleep(20_000);
	} while (Time::HiRes::time() < $end);
	return ok($samples > 5 && $worst < $tolerance_s, sprintf('%s: lag grows with the clock, error %.0f ms', $name, $worst * 1000));
}

# Writes, and returns when: between these two times.
sub write_a_row
{
	my ($admin) = @_;
	my $from = Time::HiRes::time();
	$admin->query('INSERT INTO t VALUES (1)');
	return ($from, Time::HiRes::time());
}

# ---- one standby of the primary, and one of that

$primary->backup('base');
my $one = standby_of($primary, 'one', 'eu/one');
my $two = standby_of($one, 'two', 'us/two');
my ($s1, $s2) = map { admin_of($_) } $one, $two;
state_is($p, 'eu/one', 'streaming');
state_is($s1, 'us/two', 'streaming');
state_is($_, 'self', 'streaming') foreach $s1, $s2;

is_deeply([ replica($p, 'eu/one', 'kind, region, node, counts, pid IS NOT NULL, reply_at IS NOT NULL') ], [qw(standby eu one t t t)],
	'the row of a standby');
poll_until('the clocks have been compared', sub { defined replica($_, 'self', 'clock_skew') }) foreach $s1, $s2;
is_deeply([ replica($s2, 'self', 'kind, application_name, counts, pid IS NULL, clock_skew < interval $$1s$$') ], [qw(self two f t t)],
	'the own row of a standby');
is($p->value('SELECT count(*) FROM weir.stat_replica'), 1, 'the standby of a standby has its row there, not at the primary');

# Idle. Nothing is written but heartbeats.
my @idle = ([ $p, 'eu/one' ], [ $s1, 'us/two' ], [ $s1, 'self' ], [ $s2, 'self' ]);
wait_for_no_lag(@$_) foreach @idle;
my ($before, $began, $worst, $unknown) = ($p->value('SELECT pg_current_wal_lsn()'), Time::HiRes::time(), 0, 0);
while (Time::HiRes::time() < $began + 3)
{
	foreach my $row (@idle)
	{
		my ($lag, @rest) = replica(@$row, join ', ', map { "extract(epoch FROM $_)" } qw(replay_lag flush_lag write_lag lag_p50_1m lag_max_1h));
		$unknown++ if !defined $lag || grep { !defined } @rest;
		$worst = $lag if defined $lag && $lag > $worst;
	}
	Time::HiRes::usleep(20_000);
}
is($unknown, 0, 'idle: no lag is NULL');
cmp_ok($worst, '<', 1, sprintf('idle: no lag of a second; the longest was %.0f ms', $worst * 1000));
my $after = $p->value('SELECT pg_current_wal_lsn()');
my ($records) = run_command([ 'pg_waldump', '-p', $primary->data_dir, '--rmgr=Transaction', "--start=$before", "--end=$after" ]);
my @beats = map { /len \(rec\/tot\): +\d+\/ +(\d+)/ } grep { /COMMIT/ } split /\n/, $records;
ok(@beats >= 2 && @beats <= 5, scalar(@beats) . ' heartbeats in about 3 seconds');
is((grep { $_ > 100 } @beats), 0, "none of more than 100 bytes: $beats[0]");
cmp_ok($s2->value('SELECT extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())'), '<', 2,
	'so pg_last_xact_replay_timestamp() is young, too');
cmp_ok($p->value(q{SELECT count(*) FROM weir.replica_lag_history WHERE application_name = 'eu/one'}), '>', 2, 'there is a history');

# ---- replay paused

pause_replay($s1);
my ($from) = (Time::HiRes::time());
my (undef, $to) = write_a_row($p);
lag_grows_with_the_clock($p, 'eu/one', $from, $to, 1.5);
lag_grows_with_the_clock($s1, 'self', $from, $to, 0.5);
is(scalar replica($s1, 'self', 'state'), 'paused', 'a standby that is paused says so');
cmp_ok(replica($s1, 'self', 'replay_lag_bytes'), '>', 0, 'and has WAL to replay');
cmp_ok(replica($p, 'eu/one', 'extract(epoch FROM flush_lag)'), '<', 1, 'that it has flushed');
$s1->query('SELECT pg_wal_replay_resume()');
wait_for_no_lag($p, 'eu/one');
wait_for_no_lag($s1, 'self');
state_is($s1, 'self', 'streaming');
poll_until('the longest lag is remembered', sub { replica($p, 'eu/one', 'extract(epoch FROM lag_max_1m)') > 1.5 });

# ---- cut off: the walsender stands still, to the standby a network that delivers nothing

sub set_heartbeat
{
	my ($interval) = @_;
	foreach my $node ($p, $s1)
	{
		$node->query("ALTER SYSTEM SET weir.heartbeat_interval = '$interval'");
		$node->query("ALTER SYSTEM SET wal_writer_delay = '10ms'");    # how late a beat may be
		$node->query('SELECT pg_reload_conf()');
	}
	return;
}

# As long as the silences of before are remembered.
set_heartbeat('100ms');
my $busy_until = Time::HiRes::time() + 3.5;
until (Time::HiRes::time() > $busy_until)
{
	$p->query('INSERT INTO t VALUES (2)');
	Time::HiRes::usleep(5_000);
}
my $walsender = $p->value(q{SELECT pid FROM weir.stat_replica WHERE application_name = 'eu/one'});
kill 'STOP', $walsender;
$from = Time::HiRes::time();
(undef, $to) = write_a_row($p);
lag_grows_with_the_clock($s1, 'self', $from, $to, 1.5);
lag_grows_with_the_clock($p, 'eu/one', $from, $to, 0.5);
kill 'CONT', $walsender;
wait_for_no_lag($p, 'eu/one');
wait_for_no_lag($s1, 'self');
set_heartbeat('1s');

# One further down is of no interest to the primary.
pause_replay($s2);
$from = Time::HiRes::time();
(undef, $to) = write_a_row($p);
lag_grows_with_the_clock($s1, 'us/two', $from, $to, 1);
cmp_ok(replica($p, 'eu/one', 'extract(epoch FROM replay_lag)'), '<', 1, 'a hop before there is no lag');
$s2->query('SELECT pg_wal_replay_resume()');
wait_for_no_lag($s1, 'us/two');

# ---- which count; what replays nothing

$p->query("ALTER SYSTEM SET weir.lag_replicas = 'us/*, x'");
$p->query('SELECT pg_reload_conf()');
poll_until('it does not count', sub { replica($p, 'eu/one', 'counts') eq 'f' });
$p->query("ALTER SYSTEM SET weir.lag_replicas = 'us/*, eu/o?e'");
$p->query('SELECT pg_reload_conf()');
poll_until('it counts', sub { replica($p, 'eu/one', 'counts') eq 't' });

my $name = q{a/b/c;%s"'\\}; # at least what libpq's quoting lets through
(my $quoted = $name) =~ s/(['\\])/\\$1/g;
my $receiver = IPC::Run::start([ 'pg_receivewal', '-D', PostgreSQL::Test::Utils::tempdir(), '-d', $primary->connstr . " application_name='$quoted'" ],
	'>', \my $output, '2>', \my $errors);
my $odd = q{region = 'a'};
poll_until('pg_receivewal has a row', sub { $p->value("SELECT state FROM weir.stat_replica WHERE $odd") =~ /streaming|catchup/ });
is_deeply($p->query("SELECT application_name, node, counts, replay_lsn, replay_lag IS NOT NULL FROM weir.stat_replica WHERE $odd")->[0],
	[ $name, q{b/c;%s"'\\}, 'f', undef, 't' ], 'it does not count');
my $metrics = $p->value('SELECT weir.metrics()') . "\n";
(my $label = $name) =~ s/(["\\])/\\$1/g;
like($metrics, qr/^pg_weir_replica_connected\{[^}]*standby="$_"/m, "metrics of $_") foreach 'eu/one', quotemeta $label;
is(promtool_metrics($metrics), '', 'promtool reads them');
$receiver->kill_kill;
poll_until('it is forgotten when it is gone', sub { $p->value("SELECT count(*) FROM weir.stat_replica WHERE $odd") == 0 });

# ---- no heartbeats; the sampler ended

sub beats_in
{
	my ($seconds) = @_;
	my ($xid, $end) = ($p->value('SELECT pg_snapshot_xmax(pg_current_snapshot())'), Time::HiRes::time() + $seconds);
	Time::HiRes::usleep(20_000) until Time::HiRes::time() > $end;
	return $p->value('SELECT pg_snapshot_xmax(pg_current_snapshot())') - $xid;
}

$p->query('ALTER SYSTEM SET weir.heartbeat_interval = 0');
$p->query('SELECT pg_reload_conf()');
poll_until('heartbeats cease', sub { beats_in(1.2) == 0 });
$p->query(q{ALTER SYSTEM SET weir.heartbeat_interval = '200ms'});
$p->query(q{ALTER SYSTEM SET weir.lag_sample_interval = '5s'});
$p->query('SELECT pg_reload_conf()');
poll_until('heartbeats have a pace of their own', sub { beats_in(1) >= 3 });
$p->query('ALTER SYSTEM RESET ALL');
$p->query('SELECT pg_reload_conf()');

my $pid = $p->value($sampler);
$p->query("SELECT $_($pid)") foreach qw(pg_cancel_backend pg_terminate_backend);
poll_until('a new sampler', sub { my $new = $p->value($sampler); $new ne '' && $new ne $pid });
is_deeply([ replica($p, 'eu/one', 'state, lag_max_1h > interval $$1.5s$$') ], [qw(streaming t)], 'that goes on with what was known');

# ---- a standby lost and found

$one->stop('fast');
state_is($p, 'eu/one', 'disconnected');
state_is($s2, 'self', 'disconnected');
is(scalar replica($p, 'eu/one', 'pid'), undef, 'a standby that is gone has no walsender');
wait_for_no_lag($p, 'eu/one');
$from = Time::HiRes::time();
(undef, $to) = write_a_row($p);
lag_grows_with_the_clock($p, 'eu/one', $from, $to, 1);
is(scalar replica($p, 'eu/one', 'catch_up'), undef, 'it will never catch up like this');
cmp_ok(replica($s2, 'self', 'extract(epoch FROM replay_lag)'), '>', 1, 'whoever is cut off from WAL says that he lags');
$one->start;
$s1 = admin_of($one);
state_is($p, 'eu/one', 'streaming');
wait_for_no_lag($p, 'eu/one');
is($p->value('SELECT count(*) FROM weir.stat_replica'), 1, 'it has the row that it had');
state_is($s1, 'us/two', 'streaming');
state_is($s2, 'self', 'streaming');

# ---- promotion

state_is($s1, 'self', 'streaming');
$pid = $s1->value($sampler);
$primary->stop('immediate');
state_is($s1, 'self', 'disconnected');
poll_until('it lags behind a primary that is dead', sub { replica($s1, 'self', 'extract(epoch FROM replay_lag)') > 0.5 });
$one->promote;
my $took = poll_until('promoted: no row of its own',
	sub { $s1->value(q{SELECT count(*) FROM weir.stat_replica WHERE kind = 'self'}) == 0 });
cmp_ok($took, '<', 1, 'within a second');
is($s1->value($sampler), $pid, 'the sampler is the same');
state_is($s1, 'us/two', 'streaming');
wait_for_no_lag($s1, 'us/two');
my $last = $s2->value('SELECT pg_last_xact_replay_timestamp()');
poll_until('it writes heartbeats', sub { $s2->value('SELECT pg_last_xact_replay_timestamp()') gt $last });
wait_for_no_lag($s2, 'self');
like(slurp_file($one->logfile), qr/pg_weir: promoted/, 'and says so');

$p = $s1;
pause_replay($s2);
$from = Time::HiRes::time();
(undef, $to) = write_a_row($s1);
lag_grows_with_the_clock($s1, 'us/two', $from, $to, 1);
$s2->query('SELECT pg_wal_replay_resume()');

unlike(slurp_file($_->logfile), qr/ (WARNING|PANIC):/, 'no warning in the log of ' . $_->name) foreach $one, $two;

done_testing();
