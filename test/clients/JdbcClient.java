import java.sql.Connection;
import java.sql.DriverManager;

/** The JDBC driver without a pool, in one case of test/clients/try. */
public final class JdbcClient {
    public static void main(String[] arguments) throws Exception {
        switch (arguments[0]) {
        case "error":
        case "fatal":
            transactions();
            break;
        case "hosts":
            connect("host a,b", Attempts.BOTH, "");
            connect("host a,b targetServerType=primary", Attempts.BOTH, "&targetServerType=primary");
            break;
        case "impatient":
            connect("loginTimeout=2", Attempts.GATED, "&loginTimeout=2");
            connect("connectTimeout=2", Attempts.GATED, "&connectTimeout=2&loginTimeout=6");
            break;
        default:
            connect("getConnection()", Attempts.GATED, "");
        }
    }

    private static void connect(String what, String hosts, String more) {
        Attempts.attempt(what, () -> {
            try (Connection connection = open(hosts, more)) {
                return Attempts.ask(connection);
            }
        });
    }

    private static Connection open(String hosts, String more) throws Exception {
        return DriverManager.getConnection("jdbc:postgresql://" + hosts + "/postgres?user=bench&password=none" + more);
    }

    private static void transactions() throws Exception {
        Connection connection = open(Attempts.GATED, "");
        connection.setAutoCommit(false);
        Attempts.attempt("the first statement with setAutoCommit(false)", () -> Attempts.ask(connection));
        Attempts.report("isClosed() " + connection.isClosed());
        Attempts.attempt("rollback()", () -> {
            connection.rollback();
            return "";
        });
        Attempts.attempt("the same with setAutoCommit(true)", () -> {
            connection.setAutoCommit(true);
            return Attempts.ask(connection);
        });
        Attempts.report("isClosed() " + connection.isClosed());
    }
}
