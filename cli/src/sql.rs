// SPDX-License-Identifier: Apache-2.0

//! `tracelake sql`: questions to a session in SQL.
//!
//! In: a place, and statements from the command line, a pipe or a terminal. Out: rows on standard output or in a file; what one
//! should know of the session, counts and times on standard error. On a terminal lines are edited and kept for the next time, a
//! statement ends with a semicolon, an error or Ctrl-C ends the statement; elsewhere the first error ends the command.

use std::fs::File;
use std::io::{BufRead, BufWriter, ErrorKind, IsTerminal, Lines, StdinLock, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::ValueEnum;
use dataset::catalogue;
use dataset::reader::Contents;
use dataset::render;
use dataset::schema::{DOC, UNIT};
use query::Limits;
use query::datafusion::arrow::datatypes::DataType;
use query::datafusion::prelude::SessionContext;
use query::datafusion::sql::parser::Statement;
use query::output::{self, Format, Written};
use query::views::VIEWS;
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Editor, Helper};
use tokio::runtime::Runtime;

use crate::interrupts::Interrupts;
use crate::location::Place;
use crate::{program, say, shown};

/// Plans are trees that are walked by calls: more than the 2 MiB that threads have.
const STACK: usize = 16 << 20;
/// How long what was interrupted may take to end.
const UNWIND: Duration = Duration::from_secs(2);
/// What fits beside names on most terminals.
const LONGEST: usize = 90;
const HELP: &str = "\
.tables          tables and views, with their rows
.schema TABLE    columns of one, with types and units
.quit            or Ctrl-D
Everything else is SQL and ends with a semicolon.
";

/// Arguments of `tracelake sql`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
    /// Statements to run instead of reading them from the terminal or a pipe.
    #[arg(short, long, value_name = "SQL")]
    execute: Option<String>,
    /// How rows are written: csv and json (an object a line) as they come, a table with at most 10,000 rows.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
    /// Where the rows of the one statement go, instead of standard output; parquet needs it.
    #[arg(long, value_name = "FILE", requires = "execute")]
    output_file: Option<PathBuf>,
    #[command(flatten)]
    engine: Engine,
}

/// What the engine may take of this machine.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Engine {
    /// Memory of sorts, groups and joins, in MiB. What has no room is written to a temporary folder meanwhile.
    #[arg(long, value_name = "MIB", default_value_t = Self::MEMORY)]
    memory: NonZeroUsize,
    /// The temporary folder; the system's if none is named.
    #[arg(long, value_name = "FOLDER")]
    temp_folder: Option<PathBuf>,
    /// Threads; as many as CPUs if not said.
    #[arg(long)]
    threads: Option<NonZeroUsize>,
}

impl Engine {
    const MEMORY: NonZeroUsize = NonZeroUsize::new(512).unwrap();
}

impl Default for Engine {
    fn default() -> Self {
        Self { memory: Self::MEMORY, temp_folder: None, threads: None }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Csv,
    Json,
    Parquet,
}

impl From<Output> for Format {
    fn from(output: Output) -> Self {
        match output {
            Output::Table => Self::Table,
            Output::Csv => Self::Csv,
            Output::Json => Self::Json,
            Output::Parquet => Self::Parquet,
        }
    }
}

/// Answers.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if args.output == Output::Parquet && args.output_file.is_none() {
        bail!("-o parquet writes a file: name it with --output-file, and the statement with -e");
    }
    // Who types goes on after Ctrl-C.
    let talks = args.execute.is_none() && std::io::stdin().is_terminal();
    with_engine(&args.engine, !talks, |runtime, limits| {
        runtime.block_on(async {
            let mut interrupts = Interrupts::listen_to_all()?;
            let tables = interrupts.end(open(&args.place, &limits)).await?;
            match &args.execute {
                Some(sql) => interrupts.end(tables.execute(sql, args)).await?,
                None if talks => {
                    interrupts.without_ctrl_c().end(tables.converse(args)).await?;
                }
                None => interrupts.end(tables.converse(args)).await?,
            }
            Ok(ExitCode::SUCCESS)
        })
    })
}

/// Does work that asks the engine, which may write what has no room in memory to a folder of its own. Whatever ends the work, that folder
/// goes; the work itself listens to what may interrupt it. `ctrl_c`: whether Ctrl-C ends all of it.
///
/// # Errors
/// Those of the work, and when the folder cannot be made.
pub(crate) fn with_engine<T>(
    engine: &Engine,
    ctrl_c: bool,
    work: impl FnOnce(&Runtime, Limits) -> Result<T>,
) -> Result<T> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = engine.threads {
        runtime.worker_threads(threads.get());
    }
    let runtime = runtime.thread_stack_size(STACK).enable_all().build()?;
    let temp = engine.temp_folder.clone().unwrap_or_else(std::env::temp_dir);
    // Before there is a folder: what comes in between would leave it.
    let watch = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let interrupts = watch.block_on(async { Interrupts::listen_to_all() })?;
    let interrupts = if ctrl_c { interrupts } else { interrupts.without_ctrl_c() };
    let spilled = tempfile::Builder::new().prefix("tracelake-").tempdir_in(&temp).with_context(|| {
        let temp = temp.display();
        format!("no folder can be made in {temp}; name another with --temp-folder or TMPDIR")
    })?;
    leave_nothing(watch, interrupts, spilled.path().to_owned());
    let limits = Limits {
        memory_bytes: engine.memory.get().saturating_mul(1 << 20),
        spill_to: Some(spilled.path().to_owned()),
        threads: engine.threads,
        ..Limits::default()
    };
    let ended = work(&runtime, limits);
    // Threads in the midst of a query do not look up. What they hold goes all the same.
    runtime.shutdown_timeout(UNWIND);
    drop(spilled);
    ended
}

/// Ends the program, and the folder with it, when somebody ends it and the work does not look up: while it waits for a line that is
/// typed, or for somebody who does not read what it prints.
fn leave_nothing(runtime: Runtime, mut interrupts: Interrupts, folder: PathBuf) {
    std::thread::spawn(move || {
        runtime.block_on(async {
            interrupts.next().await;
            tokio::time::sleep(UNWIND * 2).await;
        });
        // Others may be writing there: what is made after its folder was listed is for the next time.
        while std::fs::remove_dir_all(&folder)
            .is_err_and(|error| error.kind() == ErrorKind::DirectoryNotEmpty)
        {}
        std::process::exit(crate::run::LEFT.into());
    });
}

/// A session whose tables can be asked.
pub(crate) struct Tables {
    pub(crate) context: SessionContext,
    pub(crate) contents: Contents,
}

/// Opens a session, over or not, and says what one should know of it before one believes an answer.
///
/// # Errors
/// When there is none, or it cannot be read.
pub(crate) async fn open(place: &Place, limits: &Limits) -> Result<Tables> {
    let location = place.open().await?;
    let contents = location.contents_so_far().await?;
    for note in query::notes(&contents) {
        // What a store holds is no reason to trust its words on a terminal.
        say(&format!("{}: note: {}\n", program(), shown(&note)));
    }
    let context = query::open(location.store.clone(), &contents, limits).await?;
    Ok(Tables { context, contents })
}

impl Tables {
    /// Runs statements one after the other.
    async fn execute(&self, sql: &str, args: &Args) -> Result<()> {
        let statements = query::statements(sql)?;
        if let Some(path) = &args.output_file {
            ensure!(statements.len() == 1, "--output-file is for the rows of one statement");
            let unfinished = Unfinished(path.with_added_extension("part"));
            let cannot = || format!("{} cannot be written", unfinished.0.display());
            let mut file = BufWriter::new(File::create(&unfinished.0).with_context(cannot)?);
            let rows = self.answer(statements, args, &mut file).await?;
            file.flush().with_context(cannot)?;
            std::fs::rename(&unfinished.0, path)
                .with_context(|| format!("{} cannot be made", path.display()))?;
            say(&format!("{}: {rows} rows in {}\n", program(), path.display()));
            return Ok(());
        }
        let mut out = BufWriter::new(std::io::stdout());
        self.answer(statements, args, &mut out).await?;
        Ok(out.flush()?)
    }

    /// Writes the rows of each statement; how many there were.
    async fn answer(
        &self,
        statements: Vec<Statement>,
        args: &Args,
        out: &mut (dyn Write + Send),
    ) -> Result<usize> {
        let mut rows = 0;
        for statement in statements {
            let waiting = Waiting::default();
            let written = waiting.on(self.write(statement, args, &mut Rows(out, &waiting))).await;
            if waiting.unread.load(Ordering::Relaxed) {
                return Err(std::io::Error::from(ErrorKind::BrokenPipe).into());
            }
            let written = written?;
            rows += written.rows;
            if written.more {
                let shown = written.rows;
                say(&format!(
                    "{}: there are more than these {shown} rows; -o csv or json writes all\n",
                    program()
                ));
            }
        }
        Ok(rows)
    }

    async fn write(
        &self,
        statement: Statement,
        args: &Args,
        out: &mut (dyn Write + Send),
    ) -> Result<Written> {
        let frame = query::plan(&self.context, statement).await?;
        let written = output::write(frame, args.output.into(), out).await?;
        out.flush()?;
        Ok(written)
    }

    /// Reads statements until there are no more.
    async fn converse(&self, args: &Args) -> Result<()> {
        let mut input = Input::open()?;
        let terminal = matches!(input, Input::Terminal(..));
        if terminal {
            say("SQL ends with a semicolon; .tables lists what can be asked, .help says more.\n");
        }
        while let Some(text) = input.next()? {
            let text = text.trim();
            if text == ".quit" || text == ".exit" {
                break;
            }
            let began = Instant::now();
            match self.turn(text, args).await {
                Ok(Some(rows)) if terminal => {
                    say(&format!("{rows} rows, {:.3} s\n", began.elapsed().as_secs_f64()));
                }
                Err(error) if terminal => say(&format!("{}\n", shown(&format!("{error:#}")))),
                done => _ = done?,
            }
        }
        Ok(())
    }

    /// One command or some statements; of these, how many rows there were.
    async fn turn(&self, text: &str, args: &Args) -> Result<Option<usize>> {
        let mut out = std::io::stdout();
        if !text.starts_with('.') {
            let rows = self.answer(query::statements(text)?, args, &mut out).await?;
            return Ok(Some(rows));
        }
        let answer = match text.split_whitespace().collect::<Vec<_>>()[..] {
            [".tables"] => self.list(),
            [".schema", table] => self.schema(table).await?,
            [".schema"] => bail!(".schema wants a table's name; .tables lists them"),
            [".help"] => HELP.to_owned(),
            _ => bail!("{text} is no command; .help lists them"),
        };
        out.write_all(answer.as_bytes())?;
        Ok(None)
    }

    /// Tables and views.
    fn list(&self) -> String {
        let objects = self.contents.tables();
        let mut rows = Vec::new();
        for table in catalogue::tables() {
            let of_it = objects.get(table.name).map(Vec::as_slice).unwrap_or_default();
            let count: u64 = of_it.iter().map(|object| object.rows).sum();
            rows.push(vec![table.name.to_owned(), count.to_string(), table.doc.to_owned()]);
        }
        rows.sort();
        for view in VIEWS {
            let doc: Vec<&str> = view.doc().collect();
            rows.push(vec![view.name.to_owned(), "view".to_owned(), doc.join(" ")]);
        }
        for row in &mut rows {
            // The first sentence says what it is.
            row[2] = row[2].split(". ").next().unwrap_or_default().trim_end_matches('.').to_owned();
        }
        render::table_within(&["table", "rows", "a row is, or what is answered"], &rows, LONGEST)
    }

    /// Columns of a table or view.
    async fn schema(&self, name: &str) -> Result<String> {
        let known = query::tables(&self.context);
        ensure!(
            known.iter().any(|known| known == name),
            "there is no table {name:?}; there are {}",
            known.join(", ")
        );
        let table = self.context.table(name).await?;
        let columns = table.schema().fields().iter().map(|field| {
            let meta = |key: &str| field.metadata().get(key).cloned().unwrap_or_default();
            vec![field.name().clone(), type_name(field.data_type()), meta(UNIT), meta(DOC)]
        });
        Ok(render::table_within(
            &["column", "type", "unit", "what it is"],
            &columns.collect::<Vec<_>>(),
            usize::MAX,
        ))
    }
}

/// A file that goes unless it was renamed, whatever ends the work: half an answer is none.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        _ = std::fs::remove_file(&self.0);
    }
}

/// The line on a terminal that says that a statement is not done. It is gone before rows come.
#[derive(Default)]
struct Waiting {
    shown: AtomicBool,
    over: AtomicBool,
    /// Nobody reads the rows any more.
    unread: AtomicBool,
}

impl Waiting {
    const CLEAR: &str = "\r\x1b[2K";

    fn show(&self, seconds: u64) {
        if std::io::stderr().is_terminal() && !self.over.load(Ordering::Relaxed) {
            self.shown.store(true, Ordering::Relaxed);
            say(&format!("{}{seconds} s, Ctrl-C ends it", Self::CLEAR));
        }
    }

    fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
        if self.shown.swap(false, Ordering::Relaxed) {
            say(Self::CLEAR);
        }
    }

    /// What encodes rows makes words of the errors of who takes them.
    fn note<T>(&self, written: std::io::Result<T>) -> std::io::Result<T> {
        if written.as_ref().is_err_and(|error| error.kind() == ErrorKind::BrokenPipe) {
            self.unread.store(true, Ordering::Relaxed);
        }
        written
    }

    /// Ends work at Ctrl-C, so that what it has made goes with it.
    async fn on<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let began = Instant::now();
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.tick().await;
        let mut work = std::pin::pin!(work);
        let done = loop {
            tokio::select! {
                biased;
                done = &mut work => break done,
                _ = tokio::signal::ctrl_c() => break Err(anyhow!("interrupted")),
                _ = tick.tick() => self.show(began.elapsed().as_secs()),
            }
        };
        self.end();
        done
    }
}

/// Rows on their way out.
struct Rows<'a>(&'a mut (dyn Write + Send), &'a Waiting);

impl Write for Rows<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.1.end();
        self.1.note(self.0.write(bytes))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.1.note(self.0.flush())
    }
}

/// As SQL calls it.
fn type_name(ty: &DataType) -> String {
    match ty {
        DataType::Int64 => "BIGINT".to_owned(),
        DataType::Int32 => "INTEGER".to_owned(),
        DataType::Float64 => "DOUBLE".to_owned(),
        DataType::Boolean => "BOOLEAN".to_owned(),
        DataType::Utf8 | DataType::Utf8View => "VARCHAR".to_owned(),
        DataType::Dictionary(_, values) => type_name(values),
        DataType::Timestamp(..) => "TIMESTAMP".to_owned(),
        DataType::List(slot) => format!("{}[]", type_name(slot.data_type())),
        other => other.to_string(),
    }
}

/// Where statements come from.
enum Input {
    Terminal(Box<Editor<Statements, FileHistory>>, Option<PathBuf>),
    Pipe(Lines<StdinLock<'static>>),
}

/// Enter ends a line until it ends a statement.
struct Statements;

impl Helper for Statements {}

impl Completer for Statements {
    type Candidate = String;
}

impl Hinter for Statements {
    type Hint = String;
}

impl Highlighter for Statements {}

impl Validator for Statements {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let text = context.input();
        let whole = is_command(text) || text.trim().is_empty() || query::is_whole(text);
        Ok(if whole { ValidationResult::Valid(None) } else { ValidationResult::Incomplete })
    }
}

fn is_command(text: &str) -> bool {
    text.trim_start().starts_with('.')
}

impl Input {
    fn open() -> Result<Self> {
        if !std::io::stdin().is_terminal() {
            return Ok(Self::Pipe(std::io::stdin().lock().lines()));
        }
        let mut editor = Editor::new()?;
        editor.set_helper(Some(Statements));
        let history = history();
        if let Some(path) = &history {
            // The first time there is none.
            _ = editor.load_history(path);
        }
        Ok(Self::Terminal(Box::new(editor), history))
    }

    /// A command or statements; none at the end.
    fn next(&mut self) -> Result<Option<String>> {
        match self {
            Self::Terminal(editor, history) => loop {
                match editor.readline("tracelake> ") {
                    Ok(text) if text.trim().is_empty() => {}
                    Ok(text) => {
                        editor.add_history_entry(text.trim())?;
                        if let Some(path) = history {
                            // What cannot be kept is no reason not to answer.
                            _ = editor.append_history(path);
                        }
                        return Ok(Some(text));
                    }
                    Err(ReadlineError::Interrupted) => {}
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(error) => return Err(error.into()),
                }
            },
            Self::Pipe(lines) => {
                let mut text = String::new();
                for line in lines {
                    text += &line?;
                    text.push('\n');
                    if is_command(&text) || query::is_whole(&text) {
                        return Ok(Some(text));
                    }
                }
                Ok((!text.trim().is_empty()).then_some(text))
            }
        }
    }
}

/// Where what was asked is kept, in a folder that is made if it is not there.
fn history() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let folder = state.or_else(|| Some(std::env::home_dir()?.join(".local/state")))?.join("tracelake");
    std::fs::create_dir_all(&folder).ok()?;
    Some(Path::join(&folder, "sql_history"))
}
