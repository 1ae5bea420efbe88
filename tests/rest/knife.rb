# Speaks as knife 16 with the knife-shove plugin: its requests, headers, polling and exit codes as they were recorded,
# signed by mixlib-authentication, the code that knife itself signs with. Faults included: the sequence of a stream is
# never moved on, an unknown job status ends the wait, five repeats of what was answered 5xx, headers and all.
#
#   knife.rb SUBCOMMAND ARGUMENT...   with CHEF_URL, CHEF_USER, CHEF_KEY (file), SIGN_VERSION and RETRY_WAIT (seconds)
#
# Prints what the plugin reads, as JSON lines, and streams as they come.

require "openssl"
require "digest"
require "erb"
require "json"
require "mixlib/authentication/signedheaderauth"
require "net/http"
require "securerandom"
require "time"
require "uri"

class Refused < StandardError; end

class Client
  RETRIES = 5
  REQUESTS = { "GET" => Net::HTTP::Get, "POST" => Net::HTTP::Post, "PUT" => Net::HTTP::Put }.freeze
  # One for all requests of a process.
  REQUEST_ID = SecureRandom.uuid

  def initialize
    @base = URI(ENV.fetch("CHEF_URL"))
    @user = ENV.fetch("CHEF_USER")
    @key = OpenSSL::PKey::RSA.new(File.read(ENV.fetch("CHEF_KEY")))
    @version = ENV.fetch("SIGN_VERSION", "1.1")
    @retry_wait = Float(ENV.fetch("RETRY_WAIT", "4"))
  end

  def get(path, accept: "application/json")
    call("GET", path, nil, accept)
  end

  def post(path, body)
    call("POST", path, body, "application/json")
  end

  def put(path, body)
    call("PUT", path, body, "application/json")
  end

  private

  def call(method, path, body, accept)
    # Absolute or below the server's URL, as a job's uri may be either.
    uri = path =~ /\Ahttps?:/ ? URI(path) : URI(@base.to_s.chomp("/") + path)
    text = body.nil? ? "" : JSON.generate(body)
    request = REQUESTS.fetch(method).new(uri.request_uri, headers(method, uri, text, accept))
    request.body = text unless body.nil?
    answer = nil
    (0..RETRIES).each do |attempt|
      begin
        answer = Net::HTTP.start(uri.host, uri.port, read_timeout: 300) { |http| http.request(request) }
        break unless answer.is_a?(Net::HTTPServerError)
      rescue Errno::ECONNREFUSED, Timeout::Error
        raise if attempt == RETRIES
      end
      sleep(@retry_wait) if attempt < RETRIES
    end
    raise Refused, "#{answer.code} #{answer.body}" unless answer.is_a?(Net::HTTPSuccess)
    answer["content-type"].to_s.include?("json") ? JSON.parse(answer.body) : answer.body
  end

  def headers(method, uri, text, accept)
    plain = {
      "Accept" => accept,
      "Accept-Encoding" => "gzip;q=1.0,deflate;q=0.6,identity;q=0.3",
      "X-Ops-Server-API-Version" => "2",
      "Host" => "#{uri.host}:#{uri.port}",
      "Connection" => "close",
      "X-Remote-Request-Id" => REQUEST_ID,
      "X-Chef-Version" => "16.18.43",
      "User-Agent" => "Chef Infra Client Knife/16.18.43 (ruby-#{RUBY_VERSION})",
    }
    plain["Content-Type"] = "application/json" unless text.empty?
    signer = Mixlib::Authentication::SignedHeaderAuth.signing_object(
      http_method: method,
      path: uri.path,
      body: text,
      timestamp: Time.now.utc.iso8601,
      user_id: @user,
      proto_version: @version,
      headers: plain
    )
    algorithm = @version == "1.3" ? "sha256" : "sha1"
    plain.merge(signer.sign(@key, sign_algorithm: algorithm, sign_version: @version))
  end
end

class Knife
  WAITING = %w{new voting running}.freeze
  GOOD = %w{succeeded nacked unavailable}.freeze

  def initialize(client)
    @client = client
  end

  def job_start(arguments)
    options, words = options_of(arguments, %w{-q --timeout})
    command, *nodes = words
    body = { "command" => command, "nodes" => nodes, "quorum" => quorum(options["-q"] || "100%", nodes.size) }
    body["run_timeout"] = Integer(options["--timeout"]) if options.key?("--timeout")
    uri = @client.post("/shovey/jobs", body)["uri"]
    say("id" => uri[-36..-1])
    job = @client.get(uri)
    while WAITING.include?(job["status"])
      sleep(0.1)
      job = @client.get(uri)
    end
    say("status" => job["status"], "nodes" => job["nodes"])
    job["status"] == "complete" && (job["nodes"].keys - GOOD).empty? ? 0 : 1
  end

  def job_stream(arguments)
    id, node = arguments
    %w{stdout stderr}.map do |kind|
      Thread.new { follow(id, node, kind) }
    end.each(&:join)
    0
  end

  def job_cancel(arguments)
    options, words = options_of(arguments, %w{--kill-timeout})
    id, *nodes = words
    body = { "run_id" => id, "nodes" => nodes }
    body["kill_timeout"] = options["--kill-timeout"] if options.key?("--kill-timeout")
    job = @client.put("/shovey/jobs/cancel", body)
    say("command" => job["command"], "id" => job["id"], "status" => job["status"], "cancelled" => job["nodes"]["cancelled"])
    0
  end

  def job_list(_arguments)
    @client.get("/shovey/jobs").each { |id| puts id }
    0
  end

  def job_status(arguments)
    say(@client.get("/shovey/jobs/#{arguments[0]}"))
    0
  end

  def job_info(arguments)
    say(@client.get("/shovey/jobs/#{arguments[0]}/#{arguments[1]}"))
    0
  end

  def job_search(arguments)
    query = ERB::Util.url_encode(ERB::Util.url_encode(arguments[0]))
    rows = @client.get("/search/node?q=#{query}&start=0&rows=1000")["rows"]
    rows.each { |row| puts row["name"] }
    rows.empty? ? 1 : 0
  end

  def node_status(arguments)
    entries = arguments.map { |name| @client.get("/status/node/#{name}/latest") }
    entries = @client.get("/status/all/nodes") if arguments.empty?
    entries.each { |entry| puts "#{entry["node_name"]}\t#{entry["status"]}" }
    0
  end

  private

  def follow(id, node, kind)
    ended = false
    until ended
      piece = @client.get("/shovey/stream/#{id}/#{node}?sequence=0&output_type=#{kind}")
      (kind == "stdout" ? $stdout : $stderr).write(piece["output"])
      ended = piece["is_last"]
      sleep(0.25) unless ended
    end
  end

  def quorum(text, nodes)
    text.end_with?("%") ? (Float(text.chomp("%")) / 100 * nodes).ceil : Integer(text)
  end

  def options_of(arguments, known)
    options, words = {}, []
    rest = arguments.dup
    until rest.empty?
      word = rest.shift
      known.include?(word) ? options[word] = rest.shift : words << word
    end
    [options, words]
  end

  def say(value)
    puts JSON.generate(value)
    $stdout.flush
  end
end

begin
  subject, verb, *arguments = ARGV
  exit Knife.new(Client.new).public_send("#{subject}_#{verb}", arguments)
rescue Refused, SystemCallError, Timeout::Error => error
  warn "ERROR: #{error.message}"
  exit 100
end
