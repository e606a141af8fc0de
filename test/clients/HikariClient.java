import com.zaxxer.hikari.HikariConfig;
import com.zaxxer.hikari.HikariDataSource;
import java.sql.Connection;

/** HikariCP over the JDBC driver, in one case of test/clients/try. */
public final class HikariClient {
    public static void main(String[] arguments) throws Exception {
        switch (arguments[0]) {
        case "error":
        case "fatal":
            transactions();
            break;
        default:
            connections(arguments[0].equals("impatient"));
        }
        System.exit(0); // the pool's threads
    }

    private static HikariConfig config() {
        HikariConfig config = new HikariConfig();
        config.setJdbcUrl("jdbc:postgresql://" + Attempts.GATED + "/postgres");
        config.setUsername("bench");
        config.setPassword("none");
        config.setMaximumPoolSize(1);
        config.setConnectionTimeout(4000);
        return config;
    }

    private static void connections(boolean impatient) {
        HikariConfig config = config();
        config.setInitializationFailTimeout(-1); // starts without a server, as the pool of a running program is
        if (impatient)
            config.setConnectionTimeout(2000);
        HikariDataSource pool = new HikariDataSource(config);
        Attempts.attempt("getConnection(), connectionTimeout " + config.getConnectionTimeout() + " ms", () -> {
            try (Connection connection = pool.getConnection()) {
                return Attempts.ask(connection);
            }
        });
    }

    private static void transactions() throws Exception {
        HikariDataSource pool = new HikariDataSource(config());
        Connection first = pool.getConnection();
        int pid = Attempts.pid(first);
        first.setAutoCommit(false);
        Attempts.attempt("the first statement with setAutoCommit(false)", () -> Attempts.ask(first));
        Attempts.report("isClosed() " + first.isClosed());
        first.close();
        Connection second = pool.getConnection();
        Attempts.report("the pool gives " + (Attempts.pid(second) == pid ? "the same" : "another") + " connection");
        Attempts.attempt("autocommit", () -> Attempts.ask(second));
        Attempts.report("isClosed() " + second.isClosed());
        second.close();
    }
}
