# A standby that gets its WAL from an archive alone: nobody tells it what there is, so its lag is the age of the latest commit that
# it has replayed.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use PgWeir;
use PostgreSQL::Test::Cluster;
use Test::More;
use Time::HiRes ();

my $primary = gated_node(
	'primary',
	node => { allows_streaming => 1, has_archiving => 1 },
	'weir.lag_sample_interval' => '20ms');
my $admin = admin_of($primary);
$admin->query('CREATE TABLE t (i int)');
$primary->backup('base');

my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_restoring => 1);
$standby->append_conf('postgresql.conf', 'wal_retrieve_retry_interval = 100ms');
$standby->start;
my $s = admin_of($standby);
my $lag = q{SELECT extract(epoch FROM replay_lag) FROM weir.stat_replica WHERE kind = 'self'};

poll_until('its state', sub { ($s->value('SELECT state FROM weir.stat_replica') // '') eq 'archive' });
poll_until('the standby has been up for a while', sub { $s->value(q{SELECT now() - pg_postmaster_start_time() > '2 s'}) eq 't' });

my $committed;
for my $i (1, 2)
{
	$admin->query("INSERT INTO t VALUES ($i)");
	$committed = Time::HiRes::time();
	$admin->query('SELECT pg_switch_wal()');
	poll_until('the segment is replayed', sub { $s->value("SELECT count(*) FROM t WHERE i = $i") == 1 });
	my ($shown, $most);
	poll_until('its lag is that of the commit', sub { ($shown = $s->value($lag)) < ($most = Time::HiRes::time() - $committed + 0.2) });
	pass(sprintf 'segment %d: lag %.2f s, %.2f s after the commit', $i, $shown, $most - 0.2);
}

poll_until('nothing comes: lag grows with the clock', sub { $s->value($lag) > 2 });
my ($least, $shown, $most) = (Time::HiRes::time() - $committed, $s->value($lag), Time::HiRes::time() - $committed);
ok($shown > $least - 0.2 && $shown < $most + 0.2, sprintf 'nothing comes: lag %.2f s, true is %.2f s', $shown, $least);

done_testing();
