import java.io.IOException;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.math.BigDecimal;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.sql.Connection;
import java.sql.DatabaseMetaData;
import java.sql.Date;
import java.sql.Driver;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.sql.Time;
import java.sql.Timestamp;
import java.sql.Types;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.List;
import java.util.Properties;
import java.util.Set;
import java.util.TreeSet;
import java.util.UUID;

/**
 * What the Arrow Flight SQL JDBC driver does. Arguments: {@code RESULTS HOST PORT
 * OPEN_PORT TLS_PORT CERTIFICATE KEY}.
 *
 * <p>A case is a static method whose name begins with "case". Each result is one line of JSON.
 */
public final class JdbcCases {
  private static String host;
  private static String port;
  private static String tlsPort;
  private static String certificate;
  private static String key;

  private JdbcCases() {}

  // ---- Connecting

  static void caseConnectWithUserAndPassword() throws SQLException {
    try (Connection connection = connect()) {
      check(connection.isValid(5), "the connection is valid");
      equal("1", text(connection, "SELECT 1"));
    }
  }

  static void caseConnectWithToken() throws SQLException {
    try (Connection connection = DriverManager.getConnection(url() + "&token=" + key)) {
      equal("7", text(connection, "SELECT 7"));
    }
  }

  /** The driver closes a session with a catalog twice, and says so: closing it may raise. */
  static void caseConnectWithCatalog() throws SQLException {
    Properties credentials = credentials();
    credentials.setProperty("catalog", "duckmesh");
    Connection connection = DriverManager.getConnection(url(), credentials);
    try {
      equal("duckmesh", text(connection, "SELECT current_database()"));
    } finally {
      try {
        connection.close();
      } catch (SQLException error) {
        check(String.valueOf(error.getMessage()).contains("shutdown"), error.toString());
      }
    }
  }

  static void caseTls() throws SQLException {
    String url = "jdbc:arrow-flight-sql://" + host + ":" + tlsPort + "/";
    Properties trusting = credentials();
    trusting.setProperty("tlsRootCerts", certificate);
    try (Connection connection = DriverManager.getConnection(url, trusting)) {
      equal("1", text(connection, "SELECT 1"));
    }
    refused(
        "UNAVAILABLE",
        () -> {
          try (Connection connection = DriverManager.getConnection(url, credentials())) {
            text(connection, "SELECT 1");
          }
        });
  }

  static void caseWrongKeyIsRefused() {
    Properties credentials = credentials();
    credentials.setProperty("password", "wrong");
    refused(
        "UNAUTH",
        () -> {
          try (Connection connection = DriverManager.getConnection(url(), credentials)) {
            text(connection, "SELECT 1");
          }
        });
  }

  // ---- Reading

  static void caseEachColumnType() throws SQLException {
    try (Connection connection = connect();
        Statement statement = connection.createStatement();
        ResultSet rows =
            statement.executeQuery(
                "SELECT true AS b, 1::TINYINT AS i8, 2::SMALLINT AS i16, 3::INTEGER AS i32,"
                    + " 4::BIGINT AS i64, 0.5::FLOAT AS f32, 0.25::DOUBLE AS f64,"
                    + " 12.34::DECIMAL(9, 2) AS d, 'ü' AS s, '\\x00\\xFF'::BLOB AS bin,"
                    + " DATE '2026-01-31' AS day, TIME '12:30:00' AS t,"
                    + " TIMESTAMP '2026-01-31 12:00:00.25' AS ts, NULL::VARCHAR AS nothing,"
                    + " [1, 2] AS list, {'a': 1} AS st")) {
      check(rows.next(), "one row");
      equal(true, rows.getBoolean("b"));
      equal(1, rows.getInt("i8"));
      equal(2, rows.getInt("i16"));
      equal(3, rows.getInt("i32"));
      equal(4L, rows.getLong("i64"));
      equal(0.5f, rows.getFloat("f32"));
      equal(0.25, rows.getDouble("f64"));
      equal(new BigDecimal("12.34"), rows.getBigDecimal("d"));
      equal("ü", rows.getString("s"));
      check(Arrays.equals(new byte[] {0, (byte) 0xFF}, rows.getBytes("bin")), "bytes");
      equal("2026-01-31", rows.getDate("day").toString());
      equal("12:30:00", rows.getTime("t").toString());
      equal(250_000_000, rows.getTimestamp("ts").getNanos());
      check(rows.getString("nothing") == null && rows.wasNull(), "null");
      check(rows.getObject("list") != null && rows.getObject("st") != null, "nested values");
      equal(Types.BIGINT, rows.getMetaData().getColumnType(5));
      equal("i64", rows.getMetaData().getColumnLabel(5));
      check(!rows.next(), "no second row");
    }
  }

  static void caseLargeResult() throws SQLException {
    try (Connection connection = connect();
        Statement statement = connection.createStatement();
        ResultSet rows =
            statement.executeQuery("SELECT i, repeat('x', 50) FROM range(300000) r(i)")) {
      long count = 0;
      while (rows.next()) {
        count++;
      }
      equal(300_000L, count);
    }
  }

  static void caseErrorsNameTheirCode() throws SQLException {
    try (Connection connection = connect()) {
      refused("TABLE_NOT_FOUND", () -> text(connection, "SELECT * FROM absent_table"));
      equal("1", text(connection, "SELECT 1"));
    }
  }

  static void caseTimeTravelByUrlProperty() throws SQLException {
    Properties properties = credentials();
    properties.setProperty("x-duckmesh-consistency", "strong");
    try (Connection connection = DriverManager.getConnection(url(), properties)) {
      equal("1", text(connection, "SELECT 1"));
    }
  }

  // ---- Parameters

  static void caseEachParameterType() throws SQLException {
    try (Connection connection = connect()) {
      bound(connection, "BOOLEAN", (s) -> s.setBoolean(1, true), "true");
      bound(connection, "TINYINT", (s) -> s.setByte(1, (byte) 7), "7");
      bound(connection, "SMALLINT", (s) -> s.setShort(1, (short) 7), "7");
      bound(connection, "INTEGER", (s) -> s.setInt(1, 7), "7");
      bound(connection, "BIGINT", (s) -> s.setLong(1, 7_000_000_000L), "7000000000");
      bound(connection, "FLOAT", (s) -> s.setFloat(1, 0.5f), "0.5");
      bound(connection, "DOUBLE", (s) -> s.setDouble(1, 0.25), "0.25");
      bound(connection, "VARCHAR", (s) -> s.setString(1, "ü'\";"), "ü'\";");
      bound(connection, "DATE", (s) -> s.setDate(1, Date.valueOf("2026-01-31")), "2026-01-31");
      bound(connection, "TIME", (s) -> s.setTime(1, Time.valueOf("12:30:00")), "12:30:00");
      bound(
          connection,
          "TIMESTAMP",
          (s) -> s.setTimestamp(1, Timestamp.valueOf("2026-01-31 12:00:00")),
          "2026-01-31 12:00:00");
      bound(
          connection,
          "DECIMAL(9, 2)",
          (s) -> s.setBigDecimal(1, new BigDecimal("12.34")),
          "12.34");
      bound(connection, "BIGINT", (s) -> s.setNull(1, Types.BIGINT), null);
    }
  }

  static void caseBinaryParameter() throws SQLException {
    try (Connection connection = connect();
        PreparedStatement statement =
            connection.prepareStatement("SELECT octet_length(CAST(? AS BLOB))")) {
      statement.setBytes(1, new byte[] {0, 1, 2});
      try (ResultSet rows = statement.executeQuery()) {
        check(rows.next(), "one row");
        equal(3L, rows.getLong(1));
      }
    }
  }

  static void casePreparedQueryAgainAndAgain() throws SQLException {
    try (Connection connection = connect();
        PreparedStatement statement =
            connection.prepareStatement("SELECT i * 2 FROM range(10) r(i) WHERE i = ?")) {
      equal(1, statement.getParameterMetaData().getParameterCount());
      for (long value = 0; value < 5; value++) {
        statement.setLong(1, value);
        try (ResultSet rows = statement.executeQuery()) {
          check(rows.next(), "one row");
          equal(value * 2, rows.getLong(1));
        }
      }
    }
  }

  // ---- Metadata

  /** Calls every method of DatabaseMetaData that takes no argument, as tools do on connecting. */
  static void caseEveryPlainMetadataCall() throws Exception {
    Set<String> failed = new TreeSet<>();
    int called = 0;
    try (Connection connection = connect()) {
      DatabaseMetaData metadata = connection.getMetaData();
      for (Method method : DatabaseMetaData.class.getMethods()) {
        if (method.getParameterCount() > 0 || method.isDefault()) {
          continue;
        }
        called++;
        try {
          Object answer = method.invoke(metadata);
          if (answer instanceof ResultSet rows) {
            while (rows.next()) {
              rows.getObject(1);
            }
            rows.close();
          }
        } catch (InvocationTargetException error) {
          failed.add(method.getName() + ": " + error.getCause());
        }
      }
    }
    equal("[]", failed.toString());
    check(called > 120, called + " methods were called");
  }

  static void caseProduct() throws SQLException {
    try (Connection connection = connect()) {
      DatabaseMetaData metadata = connection.getMetaData();
      equal("duckmesh", metadata.getDatabaseProductName());
      check(metadata.getDatabaseProductVersion().startsWith("duckdb "), "the version's beginning");
      equal("\"", metadata.getIdentifierQuoteString());
      check(!metadata.isReadOnly(), "not read-only");
      check(metadata.supportsGroupBy(), "GROUP BY");
      check(metadata.supportsMixedCaseIdentifiers() || true, "answers");
    }
  }

  static void caseCatalogsSchemasAndTableTypes() throws SQLException {
    try (Connection connection = connect()) {
      DatabaseMetaData metadata = connection.getMetaData();
      check(column(metadata.getCatalogs(), "TABLE_CAT").contains("duckmesh"), "catalog");
      check(column(metadata.getSchemas(), "TABLE_SCHEM").contains("main"), "schema");
      check(column(metadata.getSchemas("duckmesh", "ma%"), "TABLE_SCHEM").contains("main"), "LIKE");
      check(column(metadata.getTableTypes(), "TABLE_TYPE").contains("TABLE"), "table type");
    }
  }

  static void caseTypeInfo() throws SQLException {
    try (Connection connection = connect()) {
      try (ResultSet rows = connection.getMetaData().getTypeInfo()) {
        check(rows != null, "an answer");
      }
    }
  }

  static void caseTablesColumnsAndKeys() throws SQLException {
    String table = newTable();
    try (Connection connection = connect()) {
      execute(
          connection,
          "CREATE TABLE " + table + " (id BIGINT NOT NULL, name VARCHAR, price DECIMAL(9, 2))");
      DatabaseMetaData metadata = connection.getMetaData();
      equal("[" + table + "]", column(metadata.getTables(null, null, table, null), "TABLE_NAME"));
      equal(
          "[" + table + "]",
          column(
              metadata.getTables("duckmesh", "main", table, new String[] {"TABLE", "VIEW"}),
              "TABLE_NAME"));
      equal("[]", column(metadata.getTables(null, null, "absent", null), "TABLE_NAME"));
      try (ResultSet rows = metadata.getColumns(null, "main", table, "%")) {
        List<String> seen = new ArrayList<>();
        while (rows.next()) {
          seen.add(
              rows.getString("COLUMN_NAME")
                  + " "
                  + rows.getInt("DATA_TYPE")
                  + " "
                  + rows.getInt("ORDINAL_POSITION")
                  + " "
                  + rows.getString("IS_NULLABLE"));
        }
        equal("[id -5 1 NO, name 12 2 YES, price 3 3 YES]", seen);
      }
      equal("[]", column(metadata.getPrimaryKeys(null, "main", table), "COLUMN_NAME"));
      equal("[]", column(metadata.getImportedKeys(null, "main", table), "FKCOLUMN_NAME"));
      equal("[]", column(metadata.getExportedKeys(null, "main", table), "FKCOLUMN_NAME"));
      equal(
          "[]",
          column(
              metadata.getCrossReference(null, "main", table, null, "main", table),
              "FKCOLUMN_NAME"));
      execute(connection, "DROP TABLE " + table);
    }
  }

  static void casePrimaryKey() throws SQLException {
    String table = newTable();
    try (Connection connection = connect()) {
      execute(connection, "CREATE TABLE " + table + " (id BIGINT PRIMARY KEY, name VARCHAR)");
      DatabaseMetaData metadata = connection.getMetaData();
      equal("[id]", column(metadata.getPrimaryKeys(null, "main", table), "COLUMN_NAME"));
      execute(connection, "DROP TABLE " + table);
    }
  }

  /** DBeaver opens a connection's tree: everything by patterns of "%". */
  static void caseTreeAsDbeaverAsks() throws SQLException {
    String table = newTable();
    try (Connection connection = connect()) {
      execute(connection, "CREATE TABLE " + table + " (id BIGINT)");
      DatabaseMetaData metadata = connection.getMetaData();
      check(
          column(metadata.getTables("duckmesh", "main", "%", null), "TABLE_NAME").contains(table),
          "the table is listed");
      check(
          column(metadata.getColumns("duckmesh", "main", table, "%"), "COLUMN_NAME").contains("id"),
          "the column is listed");
      equal("0", text(connection, "SELECT count(*) FROM duckmesh.main.\"" + table + "\""));
      execute(connection, "DROP TABLE " + table);
    }
  }

  // ---- Writing

  static void caseCreateInsertReadDrop() throws SQLException {
    String table = newTable();
    try (Connection connection = connect()) {
      execute(connection, "CREATE TABLE " + table + " (id BIGINT, name VARCHAR)");
      try (Statement statement = connection.createStatement()) {
        equal(2, statement.executeUpdate("INSERT INTO " + table + " VALUES (1, 'a'), (2, 'b')"));
      }
      equal("2", text(connection, "SELECT count(*) FROM " + table));
      execute(connection, "DROP TABLE " + table);
      refused("TABLE_NOT_FOUND", () -> text(connection, "SELECT * FROM " + table));
    }
  }

  static void casePreparedInsertOfEachType() throws SQLException {
    String table = newTable();
    try (Connection connection = connect()) {
      execute(
          connection,
          "CREATE TABLE "
              + table
              + " (b BOOLEAN, i INTEGER, l BIGINT, d DOUBLE, n DECIMAL(9, 2), s VARCHAR,"
              + " bin BLOB, day DATE, ts TIMESTAMP)");
      try (PreparedStatement insert =
          connection.prepareStatement("INSERT INTO " + table + " VALUES (?,?,?,?,?,?,?,?,?)")) {
        insert.setBoolean(1, true);
        insert.setInt(2, 2);
        insert.setLong(3, 3);
        insert.setDouble(4, 0.5);
        insert.setBigDecimal(5, new BigDecimal("12.34"));
        insert.setString(6, "s");
        insert.setBytes(7, new byte[] {1, 2});
        insert.setDate(8, Date.valueOf("2026-01-31"));
        insert.setTimestamp(9, Timestamp.valueOf("2026-01-31 12:00:00"));
        equal(1, insert.executeUpdate());
      }
      equal(
          "true 2 3 0.5 12.34 s 2 2026-01-31",
          text(
              connection,
              "SELECT concat_ws(' ', b, i, l, d, n, s, octet_length(bin), day) FROM " + table));
      execute(connection, "DROP TABLE " + table);
    }
  }

  static void caseBatchOfInserts() throws SQLException {
    String table = newTable();
    try (Connection connection = connect()) {
      execute(connection, "CREATE TABLE " + table + " (id BIGINT, name VARCHAR)");
      try (PreparedStatement insert =
          connection.prepareStatement("INSERT INTO " + table + " VALUES (?, ?)")) {
        for (int i = 0; i < 100; i++) {
          insert.setLong(1, i);
          insert.setString(2, "n" + i);
          insert.addBatch();
        }
        insert.executeBatch();
      }
      equal("100 4950", text(connection, "SELECT count(*) || ' ' || sum(id) FROM " + table));
      execute(connection, "DROP TABLE " + table);
    }
  }

  static void caseUpdateAndDelete() throws SQLException {
    String table = newTable();
    try (Connection connection = connect()) {
      execute(
          connection, "CREATE TABLE " + table + " (id BIGINT PRIMARY KEY, n INTEGER, day DATE)");
      try (Statement statement = connection.createStatement()) {
        String rows = " SELECT i, 0, NULL FROM range(100) AS r(i)";
        equal(100, statement.executeUpdate("INSERT INTO " + table + rows));
        equal(10, statement.executeUpdate("UPDATE " + table + " SET n = 1 WHERE id >= 90"));
        equal(10, statement.executeUpdate("DELETE FROM " + table + " WHERE n = 1"));
        equal(0, statement.executeUpdate("DELETE FROM " + table + " WHERE n = 1"));
      }
      try (PreparedStatement update =
          connection.prepareStatement("UPDATE " + table + " SET n = ?, day = ? WHERE id = ?")) {
        for (int i = 0; i < 20; i++) {
          update.setInt(1, -i);
          update.setDate(2, Date.valueOf("2026-01-31"));
          update.setLong(3, i);
          update.addBatch();
        }
        update.executeBatch();
      }
      try (PreparedStatement delete =
          connection.prepareStatement("DELETE FROM " + table + " WHERE id = ?")) {
        delete.setLong(1, 0);
        equal(1, delete.executeUpdate());
        for (int i = 10; i < 30; i++) {
          delete.setLong(1, i);
          delete.addBatch();
        }
        delete.executeBatch();
      }
      equal(
          "69 -45 9",
          text(
              connection,
              "SELECT count(*) || ' ' || sum(n) || ' ' || count(day) FROM " + table));
      execute(connection, "DROP TABLE " + table);
    }
  }

  /** The session rides on the cookie, which the driver keeps by itself. */
  static void caseReadsItsOwnWrites() throws SQLException {
    String table = newTable();
    try (Connection connection = connect()) {
      execute(connection, "CREATE TABLE " + table + " (id BIGINT)");
      for (int i = 1; i <= 20; i++) {
        execute(connection, "INSERT INTO " + table + " VALUES (" + i + ")");
        equal(String.valueOf(i), text(connection, "SELECT count(*) FROM " + table));
      }
      check(
          Long.parseLong(text(connection, "SELECT last_visibility_token()")) > 0,
          "the session knows its last token");
      execute(connection, "DROP TABLE " + table);
    }
  }

  // ---- What the cases share

  private interface Act {
    void run() throws Exception;
  }

  private interface Binding {
    void bind(PreparedStatement statement) throws SQLException;
  }

  private static String url() {
    return "jdbc:arrow-flight-sql://" + host + ":" + port + "/?useEncryption=false";
  }

  private static Properties credentials() {
    Properties properties = new Properties();
    properties.setProperty("user", "anyone");
    properties.setProperty("password", key);
    return properties;
  }

  private static Connection connect() throws SQLException {
    return DriverManager.getConnection(url(), credentials());
  }

  private static String newTable() {
    return "t_" + UUID.randomUUID().toString().replace("-", "").substring(0, 12);
  }

  private static void execute(Connection connection, String sql) throws SQLException {
    try (Statement statement = connection.createStatement()) {
      statement.execute(sql);
    }
  }

  private static String text(Connection connection, String sql) throws SQLException {
    try (Statement statement = connection.createStatement();
        ResultSet rows = statement.executeQuery(sql)) {
      return rows.next() ? rows.getString(1) : null;
    }
  }

  private static void bound(Connection connection, String type, Binding binding, String expected)
      throws SQLException {
    String sql = "SELECT CAST(CAST(? AS " + type + ") AS VARCHAR)";
    try (PreparedStatement statement = connection.prepareStatement(sql)) {
      binding.bind(statement);
      try (ResultSet rows = statement.executeQuery()) {
        check(rows.next(), type);
        equal(expected, rows.getString(1));
      }
    } catch (SQLException | RuntimeException error) {
      throw new IllegalStateException("a parameter of type " + type, error);
    }
  }

  private static List<String> column(ResultSet rows, String name) throws SQLException {
    List<String> values = new ArrayList<>();
    try (rows) {
      while (rows.next()) {
        values.add(rows.getString(name));
      }
    }
    return values;
  }

  private static void check(boolean holds, String what) {
    if (!holds) {
      throw new AssertionError(what);
    }
  }

  private static void equal(Object expected, Object got) {
    check(
        String.valueOf(expected).equals(String.valueOf(got)),
        "expected <" + expected + "> and got <" + got + ">");
  }

  private static void refused(String word, Act act) {
    try {
      act.run();
    } catch (Exception error) {
      StringBuilder said = new StringBuilder();
      for (Throwable each = error; each != null; each = each.getCause()) {
        said.append(each).append('\n');
      }
      check(said.toString().contains(word), "expected " + word + " in: " + said);
      return;
    }
    throw new AssertionError("it was not refused");
  }

  // ---- Running them

  private static String json(String text) {
    StringBuilder out = new StringBuilder("\"");
    for (char c : text.toCharArray()) {
      if (c == '"' || c == '\\') {
        out.append('\\').append(c);
      } else if (c < ' ') {
        out.append(String.format("\\u%04x", (int) c));
      } else {
        out.append(c);
      }
    }
    return out.append('"').toString();
  }

  private static String failureOf(Throwable error) {
    StringWriter text = new StringWriter();
    error.printStackTrace(new PrintWriter(text));
    return text.toString().substring(0, Math.min(4000, text.toString().length()));
  }

  public static void main(String[] arguments) throws IOException, SQLException {
    Path results = Path.of(arguments[0]);
    host = arguments[1];
    port = arguments[2];
    tlsPort = arguments[4];
    certificate = arguments[5];
    key = arguments[6];
    List<Method> cases = new ArrayList<>();
    for (Method method : JdbcCases.class.getDeclaredMethods()) {
      if (method.getName().startsWith("case")) {
        cases.add(method);
      }
    }
    cases.sort(Comparator.comparing(Method::getName));
    try (PrintWriter out =
        new PrintWriter(Files.newBufferedWriter(results, StandardCharsets.UTF_8), true)) {
      Driver driver = DriverManager.getDriver(url());
      out.println(
          "{\"version\": \""
              + driver.getMajorVersion()
              + "."
              + driver.getMinorVersion()
              + "\"}");
      for (Method method : cases) {
        String failure = "null";
        try {
          method.invoke(null);
        } catch (InvocationTargetException error) {
          failure = json(failureOf(error.getCause()));
        } catch (IllegalAccessException error) {
          failure = json(failureOf(error));
        }
        out.println("{\"case\": " + json(method.getName()) + ", \"failure\": " + failure + "}");
      }
    }
    System.exit(0);
  }
}
