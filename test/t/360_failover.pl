# Failover under load: the primary is killed, a standby is promoted, clients come again by themselves. On the new primary the gates, batches
# and views go on at once; the old one, which has WAL that nobody else has, is rewound and follows.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use Cwd ();
use Faults;
use File::Copy ();
use PgWeir;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes ();

my $seed = $ENV{SEED} // time;
note("SEED=$seed");

my $old = gated_node(
	'old_primary',
	node => { allows_streaming => 1, extra => ['--data-checksums'] },
	'weir.max_active' => 2,
	'max_connections' => 120,
	'log_statement' => 'none',
	'wal_keep_size' => '256MB',
	'weir.max_replica_lag' => '1min',
	'max_worker_processes' => 16);
my $admin = admin_of($old);
Faults::make_tables($admin, coalesced => 1);
$admin->query('CREATE TABLE markers (what text)');
$old->backup('for_standby');
my $new = PostgreSQL::Test::Cluster->new('new_primary');
$new->init_from_backup($old, 'for_standby', has_streaming => 1);
$new->start;
$admin->query($_) foreach q{ALTER SYSTEM SET synchronous_standby_names = '*'}, 'SELECT pg_reload_conf()';
poll_until('the standby is synchronous',
	sub { $admin->value("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync' AND state = 'streaming'") == 1 });

my $clients = Faults->start([ $old, $new ], clients => 32, seed => $seed);
$clients->go;
$clients->progress(500);
is_coalesced($admin, $_, 50) foreach qw(faults_rows faults_counters);

# ---- the primary dies, with a commit that the standby has not got

my $walsender = $admin->value('SELECT pid FROM pg_stat_replication');
kill 'STOP', $walsender;
$admin->query($_) foreach 'SET synchronous_commit = local', q{INSERT INTO markers VALUES ('lost')};
my ($postmaster) = split /\n/, PostgreSQL::Test::Utils::slurp_file($old->data_dir . '/postmaster.pid');
$old->kill9;
kill 'KILL', $walsender;

my $new_admin = admin_of($new);
my $launcher = q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_weir launcher'};
my $launcher_pid = $new_admin->value($launcher);
my $throttle = q{SELECT concat_ws(' ', state, standbys, (SELECT code FROM weir.check_throttle('job'))) FROM weir.stat_throttle};
is($new_admin->value($throttle), 'off 0 standby', 'a standby throttles nobody, and jobs are to write elsewhere');
$new_admin->query('SELECT pg_promote()');
my $promoted = Time::HiRes::time();

# A test: it comes to that, at once after the promotion.
sub goes_on
{
	my ($what, $sql) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	eval { poll_until($what, sub { $new_admin->value($sql) eq 't' }) };
	my $took_s = Time::HiRes::time() - $promoted;
	note(sprintf '%s: %.0f ms after the promotion', $what, 1000 * $took_s);
	return cmp_ok($took_s, '<', $PgWeir::at_once_s, "$what at once after the promotion");
}

goes_on('the gate admits', 'SELECT admitted > 20 AND waiting > 0 FROM weir.stat_admission');
goes_on('no more at once than may', q{SELECT count(*) >= 2 FROM weir.activity WHERE state = 'active'});
goes_on("$_: batches", "SELECT sum(requests) > 10 FROM weir.stat_coalesce WHERE relation = '$_'::regclass") foreach qw(faults_rows faults_counters);
goes_on('the lag view knows that it follows nobody', q{SELECT count(*) = 0 FROM weir.stat_replica WHERE kind = 'self'});
goes_on('the throttle is ready', q{SELECT state = 'idle' FROM weir.stat_throttle});
is($new_admin->value($throttle), 'idle 0 unknown', 'jobs wait until it is known who follows the new primary');
is($new_admin->value($launcher), $launcher_pid, 'nothing was started anew for that');
$clients->progress(500);
$clients->is_right('after the failover');
nothing_left($new_admin, 'while the clients rest');
$clients->go;

# ---- the old primary follows

# The processes of a postmaster that was killed go by themselves.
my $directory = Cwd::abs_path($old->data_dir);
poll_until('the old primary is gone',
	sub { !kill(0, $postmaster) && !grep { (readlink("$_/cwd") // '') eq $directory } glob '/proc/[0-9]*' });
my $kept = $old->data_dir . '/../kept.conf';
File::Copy::copy($old->data_dir . '/postgresql.conf', $kept);
$new_admin->query('CHECKPOINT');    # pg_rewind reads the new timeline from the control file
$old->command_ok([ 'pg_rewind', '-D', $old->data_dir, '--source-server', $new->connstr('postgres'), '-R' ],
	'pg_rewind, with crash recovery in single-user mode before it');
File::Copy::copy($kept, $old->data_dir . '/postgresql.conf');
$old->append_conf('postgresql.conf', "synchronous_standby_names = ''");
$old->start;
my $old_admin = admin_of($old);
is($old_admin->value('SELECT pg_is_in_recovery()'), 't', 'the old primary is a standby');
is($old_admin->value(q{SELECT count(*) FROM markers}), 0, 'without what only it had');
$new_admin->query($_) foreach q{ALTER SYSTEM SET synchronous_standby_names = '*'}, 'SELECT pg_reload_conf()';
poll_until('it is the synchronous one',
	sub { $new_admin->value("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync' AND state = 'streaming'") == 1 });
poll_until('it counts for the throttle', sub { $new_admin->value($throttle) eq 'idle 1 ok' });
is($old_admin->value($throttle), 'off 0 standby', 'the old primary throttles nobody any more');
$clients->progress(300);
$clients->is_right('with the old primary as standby');
my $rows = $new_admin->value('SELECT count(*) FROM faults_rows');
poll_until('it has replayed all', sub { $old_admin->value('SELECT count(*) FROM faults_rows') == $rows });
my $known = q{SELECT count(*) FROM weir.stat_replica WHERE kind = 'standby' AND state = 'streaming' AND replay_lag < '10 s'};
poll_until('the new primary shows its lag', sub { $new_admin->value($known) == 1 });
poll_until('and it shows its own', sub { $old_admin->value(q{SELECT count(*) FROM weir.stat_replica WHERE kind = 'self' AND replay_lag < '10 s'}) == 1 });
$clients->stop;
my $lsn = $new_admin->value('SELECT pg_current_wal_insert_lsn()');
poll_until('idle, the heartbeat goes on', sub { $new_admin->value("SELECT pg_current_wal_insert_lsn() - '$lsn'") > 0 });
pass('lag and heartbeat on the new primary, and on the old one');
is($old_admin->value("SELECT concat_ws(' ', mode, limit_now) FROM weir.stat_admission"), 'enforce 2', 'its gate is in force');

done_testing();
