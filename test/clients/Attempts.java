import java.sql.Connection;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.concurrent.Callable;
import org.postgresql.util.PSQLException;

/** What JdbcClient and HikariClient share: an attempt, and how it is reported. */
final class Attempts {
    static final String GATED = "127.0.0.1:" + System.getenv("PGPORT");
    static final String BOTH = GATED + ",127.0.0.1:" + System.getenv("OTHER_PORT");

    static void report(String text) {
        System.out.println("    " + text.replace("\n", "\n        "));
    }

    static void attempt(String what, Callable<Object> action) {
        long began = System.nanoTime();
        String result;
        try {
            result = "ok: " + action.call();
        } catch (Exception error) {
            result = describe(error);
        }
        report(String.format("%s: after %.1f s: %s", what, (System.nanoTime() - began) / 1e9, result));
    }

    static String describe(Throwable error) {
        StringBuilder text = new StringBuilder();
        for (; error != null; error = error.getCause()) {
            text.append(text.length() == 0 ? "" : "\ncaused by ").append(error.getClass().getSimpleName());
            if (error instanceof SQLException)
                text.append(", SQLState ").append(((SQLException) error).getSQLState());
            text.append("\n").append(error.getMessage());
            if (error instanceof PSQLException && ((PSQLException) error).getServerErrorMessage() != null)
                text.append("\ngetServerErrorMessage(): hint ").append(((PSQLException) error).getServerErrorMessage().getHint());
        }
        return text.toString();
    }

    static String ask(Connection connection) throws SQLException {
        try (Statement statement = connection.createStatement();
                ResultSet rows = statement.executeQuery("SELECT current_setting('cluster_name')")) {
            rows.next();
            return rows.getString(1);
        }
    }

    static int pid(Connection connection) throws SQLException {
        return connection.unwrap(org.postgresql.PGConnection.class).getBackendPID();
    }
}
