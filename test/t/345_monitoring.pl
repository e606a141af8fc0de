# The alert rules and the dashboard in monitoring/: they are valid, and every metric that they name is one that a server has.

use strict;
use warnings;

use Cwd ();
use File::Basename ();
use Http;
use IPC::Run ();
use JSON::PP ();
use PgWeir;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $directory = File::Basename::dirname(Cwd::abs_path(__FILE__)) . '/../../monitoring';
my $node = gated_node('monitoring', 'weir.max_active' => 8);
my $admin = admin_of($node);
my $text = $admin->value('SELECT weir.metrics()');
my %type = $text =~ /^# TYPE (\S+) (\S+)$/mg;
cmp_ok(scalar keys %type, '>', 40, 'the server has metrics');

# Metrics that these PromQL texts name and the server does not have.
sub unknown_metrics
{
	my %unknown;
	foreach my $name (map { /\b(pg_weir_\w+)/g } @_)
	{
		next if exists $type{$name};
		$unknown{$name} = 1 unless $name =~ /^(.*)_(?:bucket|sum|count)$/ && ($type{$1} // '') eq 'histogram';
	}
	return join ' ', sort keys %unknown;
}

# Whether Prometheus can read them, said by its own tool: as the expressions of rules.
sub promql_errors
{
	my (@expressions) = @_;
	s/\$__rate_interval/5m/g, s/\$\w+/x/g foreach @expressions;
	my $file = PostgreSQL::Test::Utils::tempdir() . '/rules.yml';
	append_to_file($file, JSON::PP::encode_json(
		{ groups => [ { name => 'g', rules => [ map { { record => "r$_", expr => $expressions[$_] } } 0 .. $#expressions ] } ] }));
	return promtool_run('check', 'rules', $file);
}

# ---- the exposition format, by a parser that is not ours

my $read = <<'PYTHON';
import sys
from prometheus_client.parser import text_string_to_metric_families
families = list(text_string_to_metric_families(sys.stdin.read()))
samples = [s for f in families for s in f.samples]
print(len(families), len(samples), sum(f.type == 'histogram' for f in families), len({(s.name, tuple(sorted(s.labels.items()))) for s in samples}))
PYTHON

# What the parser found in a text: families, samples, histograms, different samples; or what it said.
sub parsed
{
	my ($metrics) = @_;
	my ($out, $err) = ('', '');
	IPC::Run::run([ '/usr/bin/python3', '-c', $read ], '<', \$metrics, '>', \$out, '2>', \$err) or return $err;
	return split ' ', $out;
}

SKIP:
{
	skip 'python3-prometheus-client is not installed', 4 if system('/usr/bin/python3 -c "import prometheus_client.parser" 2>/dev/null') != 0;
	my $port = PostgreSQL::Test::Cluster::get_free_port();
	reconfigure($admin, 'weir.http_port' => $port);
	http_serves($port);
	my ($families, $samples, $histograms, $different) = parsed(http_get($port, '/metrics')->{body});
	is($families, scalar keys %type, 'the Python client library reads as many metrics as there are');
	cmp_ok($histograms, '>', 5, 'histograms among them');
	is($different, $samples, "no two of the $samples samples are of one name and labels");
	like(join(' ', parsed("pg_weir_x{a=\"b} 1\n")), qr/Error/, 'it does see mistakes');
}

# ---- alerts

is(promtool_run('check', 'rules', "$directory/alerts.yml"), '', 'the alert rules are valid');
is(promtool_run('test', 'rules', "$directory/alerts_test.yml"), '', 'they fire when they should, and not else');
is(promtool_run('check', 'config', "$directory/prometheus.yml"), '', 'the example of a configuration is valid');
my $alerts = slurp_file("$directory/alerts.yml");
my @alert_expressions = $alerts =~ /^ +expr: (?:\|\n)?((?:.+\n)+?) +(?:for|labels):/mg;
is(scalar @alert_expressions, scalar(() = $alerts =~ /^ +- alert: /mg), 'each alert has an expression');
is(unknown_metrics(@alert_expressions), '', 'every metric of theirs exists');
my @tested = slurp_file("$directory/alerts_test.yml") =~ /alertname="(\w+)"/g;
is(join(' ', sort @tested), join(' ', sort $alerts =~ /^ +- alert: (\w+)/mg), 'every alert is tested');

# ---- the dashboard

my $dashboard = JSON::PP::decode_json(slurp_file("$directory/dashboard.json"));
ok($dashboard->{$_}, "the dashboard has: $_") foreach qw(uid title schemaVersion time templating panels);
my %variables = map { $_->{name} => $_ } @{ $dashboard->{templating}{list} };
my (%ids, @expressions, @mistakes, %taken);
foreach my $panel (@{ $dashboard->{panels} })
{
	my $name = $panel->{title} // '(no title)';
	push @mistakes, "$name: no id of its own" if !$panel->{id} || $ids{ $panel->{id} }++;
	my $at = $panel->{gridPos};
	push @mistakes, "$name: outside of the grid" if grep { !defined $at->{$_} } qw(x y w h) or $at->{x} + $at->{w} > 24;
	foreach my $x ($at->{x} .. $at->{x} + $at->{w} - 1)
	{
		foreach my $y ($at->{y} .. $at->{y} + $at->{h} - 1)
		{
			push @mistakes, "$name: lies on $taken{$x}{$y}" if $taken{$x}{$y} && $taken{$x}{$y} ne $name;
			$taken{$x}{$y} //= $name;
		}
	}
	next if $panel->{type} eq 'row';
	push @mistakes, "$name: of an unknown type" unless $panel->{type} =~ /^(?:timeseries|stat)$/;
	push @mistakes, "$name: no unit" unless $panel->{fieldConfig}{defaults}{unit};
	push @mistakes, "$name: no description" unless $panel->{description};
	push @mistakes, "$name: nothing to show" unless @{ $panel->{targets} };
	my %references;
	foreach my $target (@{ $panel->{targets} })
	{
		push @mistakes, "$name: no refId of its own" if !$target->{refId} || $references{ $target->{refId} }++;
		push @mistakes, "$name: no legend" unless $target->{legendFormat};
		push @mistakes, "$name: not of the data source that was chosen" unless $target->{datasource}{uid} eq '${datasource}';
		push @mistakes, "$name: no variable $_" foreach grep { !$variables{$_} && $_ ne '__rate_interval' } $target->{expr} =~ /\$(\w+)/g;
		push @expressions, $target->{expr};
	}
}
is(join("\n", @mistakes), '', 'its panels are well formed');
is(unknown_metrics(@expressions, map { ref $_->{query} ? $_->{query}{query} : $_->{query} } values %variables), '', 'every metric of theirs exists');
is(promql_errors(@expressions), '', 'every expression is PromQL');

# ---- and the checks can fail

is(unknown_metrics('rate(pg_weir_nothing_total[5m]) + pg_weir_mode_bucket'), 'pg_weir_mode_bucket pg_weir_nothing_total', 'a metric that does not exist is seen');
isnt(promql_errors('rate(pg_weir_mode[5m)'), '', 'what is not PromQL is seen');

done_testing();
