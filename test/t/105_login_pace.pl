# The adaptive pace of logins: while established sessions keep the processors busy, logins wait; when those have left, all go in.

use strict;
use warnings;

use FindBin;
use IPC::Run;
use lib $FindBin::RealBin;
use PgWeir;
use PostgreSQL::Test::Utils;
use Test::More;

my $cores = grep { /^processor\s*:/ } split /\n/, slurp_file('/proc/cpuinfo');
my ($busy, $logins) = (2 * $cores, 20 * $cores);
my $node = gated_node(
	'pace',
	'weir.max_active' => 0,
	'weir.max_startups' => -1,
	'max_connections' => 40 + $busy + 2 * $logins);
my $admin = admin_of($node);

# A column of weir.startup_limit.
sub pace { return $admin->value("SELECT $_[0] FROM weir.startup_limit") }

is(pace('adaptive'), 't', 'weir.max_startups = -1 is adaptive');
is(pace('reason'), 'free', 'nobody works: logins are free');
my @first = map { app_of($node) } 1 .. $logins;
is(startup_value($admin, 'queued'), 0, 'and do not wait');
$_->close foreach @first;

# Many transactions, because an established session is one that has them; and long enough to keep the processors busy.
my $spin = $node->basedir . '/spin.sql';
append_to_file($spin, "SELECT sum(i) FROM generate_series(1, 2000) AS i;\n");
my $work = IPC::Run::start(
	[ 'pgbench', '-n', '-c', $busy, '-T', 600, '-f', $spin, $node->connstr('postgres') . ' user=app' ],
	'>', '/dev/null', '2>', '/dev/null');
poll_until('they are established and keep the processors busy',
	sub { $admin->value('SELECT established > 1 AND cpu_idle < 0.05 FROM weir.startup_limit') eq 't' });

my @late = map { app_of($node, async => 1) } 1 .. $logins;
poll_until('logins are paced', sub { $admin->value('SELECT waiting > 10 AND rate > 0 FROM weir.startup_limit') eq 't' });
like(pace('reason'), qr/^(?:busy|steady|share|drain|room)$/, 'which has its reason');
is(admin_of($node)->value('SELECT 1'), 1, 'a superuser comes in');
cmp_ok(scalar(grep { $_->answered } @late), '<', $logins, 'others wait');

reconfigure($admin, 'weir.startup_share' => 100);
poll_until('weir.startup_share = 100: no pace', sub { startups_waiting($admin) == 0 });
all_served('without a pace', @late);
reconfigure($admin, 'weir.startup_share' => 2);
poll_until('the pace has fallen from what it was meanwhile', sub { pace('rate < established * 5') eq 't' });

@late = map { app_of($node, async => 1) } 1 .. $logins;
poll_until('logins are paced anew', sub { $admin->value('SELECT waiting > 10 AND rate > 0 FROM weir.startup_limit') eq 't' });
$work->kill_kill;
poll_until('who worked has left: logins are free', sub { pace('reason') eq 'free' });
poll_until('nobody waits', sub { startups_waiting($admin) == 0 });
all_served('nobody works any more', @late);
no_startups_left($admin, 'a pace');

$node->stop;
no_warnings($node, 'no complaint in the log');
done_testing();
